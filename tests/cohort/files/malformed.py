"""Write malformed recordings, fifteen kinds of them, to see that each is refused in one line.

    python tests/cohort/files/malformed.py OUT --each 100
    openbrainmass cohort OUT --atlas OUT/atlas.nii --out STORE

The first writes the files, a participants.tsv that lists them, and an atlas image of ten ROIs; the second must exclude
all. No file can be read as valid numbers: each is torn, lies about itself, or holds something else.
"""

import argparse
import gzip
import io
import pickle
import struct
import zipfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np

MIB = 1 << 20


def series(rng, n_rois=10):
    """A recording as it should be: (n_volumes, n_rois)."""
    return rng.standard_normal((int(rng.integers(20, 60)), n_rois)).astype(np.float32)


def npy(values, allow_pickle=False):
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=allow_pickle)
    return buffer.getvalue()


def torn(data, rng, first=1):
    return data[: int(rng.integers(first, len(data)))]


def flipped(data, rng, first, last):
    changed = bytearray(data)
    for place in rng.integers(first, last, int(rng.integers(1, 6))):
        changed[place] ^= int(rng.integers(1, 256))
    # Two flips of one byte may undo each other.
    return bytes(changed) if changed != data else data[:-1]


@cache
def deflated_zeros(n_bytes):
    """A piece of a deflate stream that unpacks to zeros and can be repeated: it refers to nothing before it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(bytes(n_bytes)) + packer.flush(zlib.Z_FULL_FLUSH)


def bomb(start, n_bytes):
    """A raw deflate stream that unpacks to `start` and zeros, without ever holding them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = 16 * MIB
    return (
        packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH) + deflated_zeros(piece) * (n_bytes // piece) + b"\3\0"
    )


# -- arrays ----------------------------------------------------------------------------------------------------------


def npy_header(header):
    text = str(header).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


def npy_torn(rng, index):
    data = npy(series(rng))
    return ".npy", data[: index + 1] if index < 40 else torn(data, rng, first=128)


def npy_false_header(rng, index):
    rows = int(rng.integers(1000, 10**6))
    headers = [
        {"descr": "<f4", "fortran_order": False, "shape": (rows, 10)},
        {"descr": "<f4", "fortran_order": True, "shape": (rows * 10**7, rows)},
        {"descr": "<f8", "fortran_order": False, "shape": (-rows, 10)},
        {"descr": "<f9", "fortran_order": False, "shape": (20, rows)},
        {"descr": "|V4", "fortran_order": False, "shape": (2, 5 + index)},
        {"descr": "<c8", "fortran_order": False, "shape": (2, 2 + index % 20)},
        {"descr": "<f4", "fortran_order": False, "shape": ("20", index)},
        {"descr": [("x", "<f4")] * 2, "fortran_order": False, "shape": (index, 10)},
    ]
    return ".npy", npy_header(headers[index % len(headers)]) + series(rng).tobytes()


class Unpickled:
    """Ends whoever unpickles it."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a foreign file was unpickled')",)


def npy_pickled(rng, index):
    held = [Unpickled(), index] if index % 2 else {"values": series(rng).tolist()}
    values = np.empty((2, 2), dtype=object)
    values[0, 0] = held
    if index % 3 == 0:
        return ".npy", pickle.dumps([series(rng), held])
    return ".npy", npy(values, allow_pickle=True)


def npz_bomb(rng, index):
    """One array of gibibytes in an archive of a few megabytes; its header is right about itself."""
    claimed = int(rng.integers(3, 200)) << 30
    header = npy_header({"descr": "<f4", "fortran_order": False, "shape": (claimed // 40, 10)})
    packed = bomb(header, (index % 5 + 1) * 256 * MIB)
    name = f"bold{index}.npy".encode()
    size = min(claimed, 0xFFFFFFFE)
    fields = struct.pack("<5H3I2H", 20, 0, 8, 0, 0, index, len(packed), size, len(name), 0)
    local = b"PK\3\4" + fields + name
    central = b"PK\1\2" + struct.pack("<H", 20) + fields + struct.pack("<3H2I", 0, 0, 0, 0, 0) + name
    end = b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 1, 1, len(central), len(local) + len(packed), 0)
    return ".npz", local + packed + central + end


def npz_torn(rng, index):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bold.npy", npy(series(rng)))
    data = buffer.getvalue()
    return ".npz", torn(data, rng) if index % 2 else flipped(data, rng, 60, data.index(b"PK\1\2"))


# -- Matlab ----------------------------------------------------------------------------------------------------------


def matlab_header(version=0x0100):
    return b"MATLAB 5.0 MAT-file, a file for tests".ljust(124) + struct.pack("<H", version) + b"IM"


def matlab_matrix(shape, data, claimed=None):
    """A variable `bold` of doubles, as version 5 lays it out."""
    body = (
        struct.pack("<6I", 6, 8, 6, 0, 5, 8)
        + struct.pack("<2i", *shape)
        + struct.pack("<2I", 1, 4)
        + b"bold"
        + bytes(4)
    )
    body += struct.pack("<2I", 9, len(data) if claimed is None else claimed) + data
    return struct.pack("<2I", 14, len(body) if claimed is None else claimed + 56) + body


def matlab_flipped(rng, index):
    values = series(rng).astype(np.float64)
    packed = zlib.compress(matlab_matrix(values.shape, values.tobytes(order="F")))
    data = matlab_header() + struct.pack("<2I", 15, len(packed)) + packed
    return ".mat", flipped(data, rng, 124, len(data))


def matlab_bomb(rng, index):
    """A variable that claims gibibytes, or unpacks to hundreds of megabytes and then ends too early."""
    rows = int(rng.integers(1000, 2000))
    shape, claimed, unpacked = [
        ((rows, 16000), (3 << 30) + index, 512 * MIB),
        ((rows << 7, 1 << 14), 8000 + index, 512 * MIB),
        ((rows, 16000), rows * 16000 * 8, 64 * MIB),
        ((rows, 32), rows * 32 * 8, 0),
    ][index % 4]
    packed = b"\x78\x9c" + bomb(matlab_matrix(shape, b"", claimed), unpacked) + bytes(4)
    return ".mat", matlab_header() + struct.pack("<2I", 15, len(packed)) + packed


def matlab_hdf5(rng, index):
    rest = rng.bytes(int(rng.integers(100, 4000)))
    start = b"" if index % 3 == 0 else matlab_header(0x0200).ljust(512, b"\0")
    return ".mat", start + b"\x89HDF\r\n\x1a\n" + rest


# -- images ----------------------------------------------------------------------------------------------------------


def nifti_header(shape, datatype=16, offset=352.0, dimensions=None, magic=b"n+1\0"):
    bits = {2: 8, 4: 16, 16: 32, 64: 64}.get(datatype, 32)
    header = bytearray(348)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, *(dimensions or (len(shape), *shape, *(1,) * (7 - len(shape)))))
    struct.pack_into("<2h", header, 70, datatype, bits)
    struct.pack_into("<8f", header, 76, 1, 4, 4, 4, 2, 1, 1, 1)
    struct.pack_into("<3f", header, 108, offset, 1, 0)
    header[123] = 2 | 8
    struct.pack_into("<2h", header, 252, 0, 1)
    struct.pack_into("<12f", header, 280, 4, 0, 0, -16, 0, 4, 0, -16, 0, 0, 4, -16)
    header[344:348] = magic
    return bytes(header) + bytes(4)


def image(rng):
    shape = (8, 8, 8, int(rng.integers(10, 20)))
    return nifti_header(shape) + rng.standard_normal(shape).astype("<f4").tobytes()


def nifti_torn(rng, index):
    data = image(rng)
    if index % 3 == 0:
        return ".nii", torn(data, rng)
    packed = gzip.compress(data, mtime=0)
    return ".nii.gz", torn(packed, rng) if index % 3 == 1 else flipped(packed, rng, 20, len(packed))


def nifti_bomb(rng, index):
    """A gzip file of megabytes that unpacks to gibibytes, of an image that claims still more."""
    header = nifti_header((512, 512, int(rng.integers(400, 512)), int(rng.integers(300, 3000))), datatype=64)
    packed = bomb(header, (index % 4 + 1) * 512 * MIB)
    return ".nii.gz", b"\x1f\x8b\x08\0\0\0\0\0\2\xff" + packed + struct.pack("<2I", index, index)


def nifti_absurd(rng, index):
    number = int(rng.integers(1, 1000))
    choices = [
        nifti_header((8, 8, 8, 10), dimensions=(4, -number, 8, 8, 10, 1, 1, 1)),
        nifti_header((8, 8, 8, 10), dimensions=(8 + number, 8, 8, 8, 10, 1, 1, 1)),
        nifti_header((8, 8, 8, 10), dimensions=(0, 0, 0, 0, 0, 0, 0, number)),
        nifti_header((8, 8, 8, 10), dimensions=(4, 32767, 32767, 32767, number, 1, 1, 1)),
        nifti_header((8, 8, 8, 10), datatype=9000 + number),
        nifti_header((8, 8, 8, 10), datatype=(0, 1, 255)[number % 3]),
        nifti_header((8, 8, 8, 10), offset=1e9 * number),
        nifti_header((8, 8, 8, 10), offset=float("nan")),
        nifti_header((8, 8, 8, 10), magic=rng.bytes(3) + b"x"),
        nifti_header((8, 8, 8, 0), dimensions=(4, 8, 8, 0, number, 1, 1, 1)),
    ]
    data = choices[index % len(choices)] + rng.bytes(8 * 8 * 8 * 10 * 4)
    return (".nii.gz", gzip.compress(data, mtime=0)) if index // len(choices) % 2 else (".nii", data)


PARCELS = """<CIFTI Version="2"><Matrix><MatrixIndicesMap AppliesToMatrixDimension="0"
 IndicesMapToDataType="CIFTI_INDEX_TYPE_SERIES" NumberOfSeriesPoints="{points}" SeriesExponent="0" SeriesStart="0"
 SeriesStep="2" SeriesUnit="SECOND"/><MatrixIndicesMap AppliesToMatrixDimension="1"
 IndicesMapToDataType="CIFTI_INDEX_TYPE_PARCELS"><Volume VolumeDimensions="8,8,8"><TransformationMatrixVoxelIndicesIJKtoXYZ
 MeterExponent="-3">4 0 0 -16 0 4 0 -16 0 0 4 -16 0 0 0 1</TransformationMatrixVoxelIndicesIJKtoXYZ></Volume>
{parcels}</MatrixIndicesMap></Matrix></CIFTI>"""


def cifti_xml(rng, index):
    points = int(rng.integers(20, 60))
    whole = PARCELS.format(
        points=points,
        parcels="".join(
            f'<Parcel Name="{i}"><VoxelIndicesIJK>{i % 8} 0 0</VoxelIndicesIJK></Parcel>' for i in range(8)
        ),
    )
    lol = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    laughs = f'<?xml version="1.0"?><!DOCTYPE CIFTI [<!ENTITY l0 "{"ha" * points}">{lol}]>'
    outside = '<?xml version="1.0"?><!DOCTYPE CIFTI [<!ENTITY x SYSTEM "file:///etc/hostname">]>'
    choices = [
        whole[: int(rng.integers(10, len(whole) - 10))],
        laughs + whole.replace('Name="0"', 'Name="&l11;"'),
        outside + whole.replace('Name="0"', f'Name="&x;{points}"'),
        whole.replace("CIFTI Version", f"html Version{points}"),
        whole.replace("CIFTI_INDEX_TYPE_PARCELS", f"CIFTI_INDEX_TYPE_PARSNIPS{points}"),
        whole.replace(f'NumberOfSeriesPoints="{points}"', f'NumberOfSeriesPoints="{points + 7}"'),
        whole.replace("0 0</Voxel", f"{points} x</Voxel"),
        "".join(map(chr, rng.integers(1, 127, 400))),
        "<a>" * (20000 + points),
    ]
    xml = choices[index % len(choices)].encode() if index % 18 != 9 else rng.bytes(300)
    return ".ptseries.nii", nifti2(xml, points, rng)


def nifti2(xml, points, rng):
    extension = xml.ljust(-(-(len(xml) + 8) // 16) * 16 - 8, b"\0")
    offset = 544 + len(extension) + 8
    header = bytearray(544)
    struct.pack_into("<i8s2h", header, 0, 540, b"n+2\0\r\n\x1a\n", 16, 32)
    struct.pack_into("<8q", header, 16, 6, 1, 1, 1, 1, points, 8, 1)
    struct.pack_into("<8d", header, 104, *(1.0,) * 8)
    struct.pack_into("<q", header, 168, offset)
    struct.pack_into("<d", header, 176, 1.0)
    struct.pack_into("<i", header, 504, 3004)
    header[540] = 1
    values = rng.standard_normal((points, 8)).astype("<f4").tobytes()
    return bytes(header) + struct.pack("<2i", len(extension) + 8, 32) + extension + values


# -- tables ----------------------------------------------------------------------------------------------------------


def rows(rng, separator="\t"):
    return [separator.join(f"{value:.4f}" for value in row) for row in series(rng)]


def tsv_ragged(rng, index):
    lines = rows(rng)
    place = int(rng.integers(3, len(lines)))
    changes = [
        lines[place].rsplit("\t", int(rng.integers(1, 9)))[0],
        lines[place] + "\t1.5" * int(rng.integers(1, 9)),
        lines[place].replace(lines[place].split("\t")[4], ("lost", "#DIV/0!", "1,5", "--", "0x1F")[index % 5]),
        rng.bytes(200).hex(" "),
        f"Traceback (most recent call last): line {place}",
        lines[place].replace("\t", " "),
    ]
    lines[place] = changes[index % len(changes)]
    data = "\n".join(lines).encode()
    return ".tsv", data if index % 13 else data[: len(data) // 2] + rng.bytes(500)


def csv_not_text(rng, index):
    text = "\n".join([",".join(f"roi{i}" for i in range(10)), *rows(rng, ",")])
    choices = [
        text.encode("utf-16"),
        text.encode("utf-32"),
        text.encode("cp500"),
        b"\xff" * index,
        b"\n" * (index - 4),
        ",".join(f"roi{i}" for i in range(10 + index)).encode(),
        gzip.compress(text.encode(), mtime=0),
        f"<!DOCTYPE html><html><title>403 Forbidden</title><p>Request {index} refused.</p></html>\n".encode(),
        rng.bytes(1000 + index),
        b"PK\3\4" + rng.bytes(500 + index),
    ]
    return ".csv", choices[index % len(choices)]


def afni_garbage(rng, index):
    lines = rows(rng)
    place = int(rng.integers(2, len(lines)))
    header = "\t".join(f"#{i}" for i in range(1, 11))
    choices = [
        "\n".join(f"# comment {i}" for i in range(1, 3 + index)).encode(),
        "\n".join([header, *lines[:place], lines[place].rsplit("\t", index % 8 + 1)[0], *lines[place:]]).encode(),
        "\n".join([header, *lines[:place], "no number here", *lines[place:]]).encode(),
        "\n".join([header, *lines[:place]]).encode() + b"\n" + rng.bytes(300),
        "\n".join([header, *lines[:place], lines[place] + "\t1.5" * (index % 9 + 1), *lines[place:]]).encode(),
        rng.bytes(900 + index),
        f'<AFNI_matrix ni_type="10*double" ni_dimen="{place + 100 * index}">\n</AFNI_matrix>\n'.encode(),
        "\n".join([header, *lines]).encode("utf-16"),
    ]
    return ".1D", choices[index % len(choices)]


KINDS = {
    "npy-torn": npy_torn,
    "npy-false-header": npy_false_header,
    "npy-pickled": npy_pickled,
    "npz-bomb": npz_bomb,
    "npz-torn": npz_torn,
    "mat-flipped": matlab_flipped,
    "mat-bomb": matlab_bomb,
    "mat-hdf5": matlab_hdf5,
    "nii-torn": nifti_torn,
    "nii-bomb": nifti_bomb,
    "nii-absurd": nifti_absurd,
    "cifti-xml": cifti_xml,
    "tsv-ragged": tsv_ragged,
    "csv-not-text": csv_not_text,
    "1d-garbage": afni_garbage,
}
"""What makes the file of a kind: (random numbers, its number) -> (suffix, bytes)."""


def write_malformed(folder, kind, index):
    """Write one file and return its path; the same kind and number give the same file everywhere."""
    rng = np.random.default_rng([list(KINDS).index(kind), index])
    suffix, data = KINDS[kind](rng, index)
    path = Path(folder) / kind / f"{index:03}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_atlas(folder):
    """Write a label image with ten ROIs, on the grid of the images, and return its path."""
    labels = np.zeros((8, 8, 8), dtype="<i2")
    labels.flat[:10] = range(1, 11)
    path = Path(folder) / "atlas.nii"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(nifti_header(labels.shape, datatype=4) + labels.tobytes(order="F"))
    return path


def main():
    parser = argparse.ArgumentParser(description="Write malformed recordings and a participants.tsv that lists them.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--each", type=int, default=100, help="files of each kind")
    asked = parser.parse_args()
    lines = ["participant_id\tfile"]
    for kind in KINDS:
        for index in range(asked.each):
            path = write_malformed(asked.out, kind, index)
            lines.append(f"sub-{kind.replace('-', '')}{index:03}\t{path.relative_to(asked.out).as_posix()}")
    write_atlas(asked.out)
    (asked.out / "participants.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines) - 1} files of {len(KINDS)} kinds in {asked.out}")


if __name__ == "__main__":
    main()
