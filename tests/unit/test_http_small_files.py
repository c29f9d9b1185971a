"""Small files from servers of other people: what counts as "there is none"."""

from pathlib import Path

import pytest

from edge_sdk.adapters.http_files import HttpFiles
from edge_sdk.errors import TransportError
from tests.support.software import RangeServer


@pytest.mark.parametrize("status", [403, 404])
def test_name_that_is_not_there(tmp_path: Path, status: int) -> None:
    """An object store that lists nothing answers 403: a board asks for the root after the newest one at every pass."""
    server = RangeServer(tmp_path)
    server.missing_status = status
    with server.running():
        assert HttpFiles().get(server.url, "/metadata/2.root.json", bytes_max=100, timeout_s=60) is None


@pytest.mark.parametrize("status", [301, 401, 429, 500, 503])
def test_other_answers_say_nothing_about_the_file(tmp_path: Path, status: int) -> None:
    server = RangeServer(tmp_path)
    server.missing_status = status
    with server.running(), pytest.raises(TransportError, match=f"status {status}"):
        HttpFiles().get(server.url, "/metadata/2.root.json", bytes_max=100, timeout_s=60)
