"""Enter a model of your own, and features that another group computed, beside the floors; then rank all of them.

Everything is simulated, so the script needs no data and takes well under a minute on one core:

    python examples/own_model.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import openbrainmass as obm
from openbrainmass.evaluation.audit.features import audit_features
from openbrainmass.evaluation.baselines import floors
from openbrainmass.evaluation.features import TableFeatures
from openbrainmass.report.leaderboard import write_leaderboard

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="openbrainmass-"))
cohort = obm.simulate_cohort(n_people=100, n_rois=30, seed=2, name="clinic")
task = obm.Task.from_cohort(cohort)

# Any scikit-learn classifier is a model, with anything in front of it that takes a cohort. What is fitted is fitted
# anew on the training side of each fold, and nothing needs to be told of folds.
own = make_pipeline(obm.Connectome("fisher-z"), StandardScaler(), PCA(20), LinearDiscriminantAnalysis())

# A choice (here of C) is made by inner folds. With a group-wise splitter they keep each person's scans together.
grid = {"logisticregression__C": [1e-4, 1e-3, 1e-2]}
classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
tuned = GridSearchCV(classifier, grid, scoring="roc_auc", cv=StratifiedGroupKFold(3))

# Another group sends one row of features a recording. The table must fit the cohort exactly. While nobody knows whom
# their model had met before, its results are marked and have no rank; here it is known that it met nobody. The audit
# looks for what must not have been done to the table, such as scaling over people who are tested later.
received = pd.DataFrame({"recording_id": cohort.recordings["recording_id"]})
for roi in range(10):
    received[f"variance_{roi}"] = [float(np.log(scan[:, roi].var())) for scan in cohort]
received.to_csv(folder / "theirs.tsv", sep="\t", index=False)
for check, verdict, finding in audit_features(received, cohort, task):
    print(f"{check}: {verdict}. {finding}")

models = {
    "my components": own,
    "my edges, tuned": make_pipeline(obm.Connectome("fisher-z"), tuned),
    "their variances": make_pipeline(
        TableFeatures.of_cohort(folder / "theirs.tsv", cohort, seen="nobody"), StandardScaler(), LogisticRegression()
    ),
    "their variances, nobody asked": make_pipeline(
        TableFeatures.of_cohort(folder / "theirs.tsv", cohort), StandardScaler(), LogisticRegression()
    ),
}
protocols = ("k-fold", "site-held-out")
results = obm.evaluate({**models, **floors("logistic", task)}, cohort, task, protocols=protocols, n_repeats=2)
results.save(folder / "results")

# Folders of several groups may be given, in which case only those with the same people, labels and folds share a board.
page = write_leaderboard([folder / "results"], folder / "leaderboard.html")
ranks = pd.read_csv(folder / "leaderboard_ranks.tsv", sep="\t")
print(ranks[["protocol", "rank", "model", "standing", "p_corrected"]].round(3).to_string(index=False))
print(f"\nThe page is {page}; leaderboard.tsv beside it has every metric of every model.")
