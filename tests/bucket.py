"""OpenNeuro's bucket with a replica of ds004199, served on this machine."""

import gzip
import hashlib
import http.server
import threading
import urllib.parse
from contextlib import contextmanager

import nibabel as nib
import numpy as np

from tfds_epilepsy.volumes import write_nifti

PEOPLE = """\
participant_id\tgroup\tsex\tage_scan\themisphere\tsplit
sub-00001\tfcd\tM\t6\tleft\ttrain
sub-00002\tfcd\tF\t8\tright\ttest
sub-00003\thc\tF\t5\tn/a\ttrain
sub-00004\thc\tM\tn/a\tn/a\ttrain
sub-00005\thc\tM\t7\tn/a\ttrain
sub-00006\tfcd\tF\t9\tleft\ttest
"""
SCANS = {
    "00001": ("acq-iso08_T1w", "acq-T2sel_FLAIR", "acq-T2sel_FLAIR_roi"),
    "00002": ("acq-iso08_T1w", "acq-T2sel_FLAIR", "acq-tse3dvfl_FLAIR", "acq-tse3dvfl_FLAIR_roi"),
    "00003": ("acq-iso08_T1w", "acq-T2sel_FLAIR"),
    "00004": ("acq-iso08_T1w", "acq-T2sel_FLAIR"),
    "00005": ("acq-anat_T1w", "acq-iso08_T1w", "acq-T2sel_FLAIR"),
    "00006": ("acq-iso08_T1w",),
}


@contextmanager
def served(folder):
    """The handler's class, with the server's address; ``folder`` is for files that are made on the way."""
    made = type(
        "Made",
        (Bucket,),
        {"files": replica(folder), "multipart": set(), "breaks_after": {}, "damaged": set(), "requests": []},
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), made)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    made.address = f"http://127.0.0.1:{server.server_port}/openneuro.org"
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def replica(folder):
    """The files by their keys."""
    files = {
        "ds004199/participants.tsv": b"\xef\xbb\xbf" + PEOPLE.encode(),
        "ds004199/dataset_description.json": b'{"Name": "replica", "BIDSVersion": "1.7.0"}',
        "ds004199/derivatives/large.bin": b"x" * 1000,
        "ds0041990/README": b"another data set",
    }
    for number, (label, names) in enumerate(SCANS.items()):
        rng = np.random.default_rng(number)
        for name in names:
            shape = (12, 12, 5) if "tse3dvfl" in name else (10, 11, 12)
            values = rng.integers(0, 2, shape) if name.endswith("roi") else rng.uniform(50, 900, shape)
            path = write_nifti(folder / "made.nii.gz", values, np.diag([2.0, 2, 2, 1]))
            files[f"ds004199/sub-{label}/anat/sub-{label}_{name}.nii.gz"] = path.read_bytes()
        files[f"ds004199/sub-{label}/anat/sub-{label}_{names[0]}.json"] = b"{}"
    return files


def nifti(seed, mask=False, shape=(10, 11, 12)):
    """Bytes of a small NIfTI: noise, or a mask."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2, shape) if mask else rng.uniform(50, 900, shape)
    image = nib.Nifti1Image(values.astype(np.float32), np.diag([2.0, 2, 2, 1]))
    return gzip.compress(image.to_bytes(), mtime=0)


class Bucket(http.server.BaseHTTPRequestHandler):
    """As much of S3 as a download sees: listings in pages, ETags, ranges; and its accidents, on request."""

    files: dict[str, bytes]
    multipart: set[str]
    breaks_after: dict[str, int]  # bytes of a file until the connection breaks, each time
    damaged: set[str]
    requests: list[tuple[str, str | None]]

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        bucket, _, key = url.path.removeprefix("/").partition("/")
        self.requests.append((key, self.headers.get("Range")))
        if bucket != "openneuro.org":
            return self.send_error(404)
        return self.send_object(key) if key else self.send_listing(urllib.parse.parse_qs(url.query))

    def etag(self, key):
        return hashlib.md5(self.files[key]).hexdigest() + ("-2" if key in self.multipart else "")

    def send_listing(self, query):
        assert query["list-type"] == ["2"]
        keys = sorted(key for key in self.files if key.startswith(query["prefix"][0]))
        start = int(query.get("continuation-token", ["0"])[0])
        rows = "".join(
            f"<Contents><Key>{key}</Key><ETag>&quot;{self.etag(key)}&quot;</ETag>"
            f"<Size>{len(self.files[key])}</Size></Contents>"
            for key in keys[start : start + 5]
        )
        more = f"<NextContinuationToken>{start + 5}</NextContinuationToken>" if start + 5 < len(keys) else ""
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        self.answer(200, f'<ListBucketResult xmlns="{space}">{rows}{more}</ListBucketResult>'.encode())

    def send_object(self, key):
        if key not in self.files:
            return self.send_error(404)
        content = self.files[key]
        if key in self.damaged:
            content = bytes(reversed(content))
        wanted, status = self.headers.get("Range"), 200
        if wanted and self.headers.get("If-Range") == f'"{self.etag(key)}"':
            content, status = content[int(wanted.removeprefix("bytes=").removesuffix("-")) :], 206
        return self.answer(status, content, self.breaks_after.get(key))

    def answer(self, status, content, stop=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:stop])

    def log_message(self, *_):
        pass
