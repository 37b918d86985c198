"""Links of the documents outside of the site lead somewhere; those within it the site's own build checks."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(path for path in ROOT.glob("*.md"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document):
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
    local = [link.partition("#")[0] for link in links if not link.startswith(("http", "mailto:", "#"))]
    assert not [link for link in local if not (ROOT / link).exists()]
