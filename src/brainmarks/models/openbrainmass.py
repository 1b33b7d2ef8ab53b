"""Found by Brainmarks, whose namespace package ``brainmarks.models`` this is a part of; our models are elsewhere."""

from openbrainmass.model.brainmarks import register

register()
