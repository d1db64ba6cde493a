"""Where weights come from: files and URLs."""

from __future__ import annotations

import hashlib
import socket
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import sr_runner.weights as weights
from sr_runner.config.compose import composed
from sr_runner.errors import RequestError
from sr_runner.models import EDSR
from sr_runner.weights import sources


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    return weights.export(EDSR(scale=2, num_filters=4, num_res_blocks=1), tmp_path / "weights" / "model.safetensors")


def test_a_folder_or_nothing_at_all_is_refused(model_file, tmp_path):
    with pytest.raises(RequestError, match=r"a folder; expected a weights file"):
        weights.read(model_file.parent)
    with pytest.raises(RequestError, match=r"missing\.pt: no such file"):
        weights.read(tmp_path / "missing.pt")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on tmp_path/www, with torch.hub's folder beside it; counts its requests."""
    (tmp_path / "www").mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, directory=tmp_path / "www", **kwargs)

        def log_message(self, *args: object) -> None:
            requests.append(self.path)

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}", tmp_path / "www", requests
    web.shutdown()
    web.server_close()


def test_a_url_is_downloaded_once_into_torch_hubs_folder(server, model_file, tmp_path):
    url, www, requests = server
    (www / "edsr.safetensors").write_bytes(model_file.read_bytes())
    for _ in range(2):
        assert isinstance(weights.load_model(f"{url}/edsr.safetensors"), EDSR)
    assert len(requests) == 1
    [kept] = (tmp_path / "hub" / "hub" / "checkpoints").iterdir()
    assert kept.read_bytes() == model_file.read_bytes()


def test_secrets_in_a_url_reach_no_log_and_no_message(server, model_file, caplog):
    url, www, _ = server
    (www / "edsr.safetensors").write_bytes(model_file.read_bytes())
    caplog.set_level("INFO")
    loaded = weights.read(f"{url}/edsr.safetensors?X-Amz-Signature=hush")
    assert loaded.source == f"{url}/edsr.safetensors"
    with pytest.raises(RequestError) as error:
        weights.read(f"{url.replace('://', '://me:hush@')}/missing.pt?token=hush")
    assert "missing.pt: cannot be downloaded" in str(error.value)
    assert "downloading" in caplog.text and "hush" not in caplog.text + str(error.value)


def test_the_hash_in_a_urls_name_is_checked(server, model_file, tmp_path):
    url, www, _ = server
    digest = hashlib.sha256(model_file.read_bytes()).hexdigest()
    (www / f"good-{digest[:8]}.safetensors").write_bytes(model_file.read_bytes())
    (www / "bad-0badc0de.safetensors").write_bytes(model_file.read_bytes())
    assert weights.read(f"{url}/good-{digest[:8]}.safetensors").network == "edsr"
    with pytest.raises(RequestError, match=r"cannot be downloaded .*hash"):
        weights.read(f"{url}/bad-0badc0de.safetensors")
    assert len(list((tmp_path / "hub" / "hub" / "checkpoints").iterdir())) == 1


def test_a_date_in_a_urls_name_is_no_hash(server, model_file):
    url, www, _ = server
    (www / "edsr-20260131.safetensors").write_bytes(model_file.read_bytes())
    assert weights.read(f"{url}/edsr-20260131.safetensors").network == "edsr"


def test_a_published_file_is_checked_against_its_published_hash(server, model_file, monkeypatch):
    url, www, _ = server
    (www / "vgg.h5").write_bytes(model_file.read_bytes())
    monkeypatch.setitem(sources.MD5, f"{url}/vgg.h5", "0" * 32)
    with pytest.raises(RequestError, match=r"cannot be downloaded \(its MD5 hash is [0-9a-f]{32}, not the published 0"):
        weights.read(f"{url}/vgg.h5")
    monkeypatch.setitem(sources.MD5, f"{url}/vgg.h5", hashlib.md5(model_file.read_bytes()).hexdigest())
    assert weights.read(f"{url}/vgg.h5").network == "edsr"


def test_the_keras_vgg19_that_a_recipe_names_has_a_published_hash():
    recipe = composed(["+experiment=srgan_krasserm"])[0].objective.losses.content.vgg_weights
    assert recipe == sources.KERAS_VGG19_URL
    assert sources.MD5[recipe] == "253f8cb515780f3b799900260a226db6"


def test_a_download_that_broke_off_is_not_kept(server, model_file, tmp_path):
    url, www, _ = server
    (www / "edsr.safetensors").write_bytes(model_file.read_bytes()[:-100])
    with pytest.raises(RequestError, match=r"edsr\.safetensors: what was downloaded is damaged"):
        weights.read(f"{url}/edsr.safetensors")
    (www / "edsr.safetensors").write_bytes(model_file.read_bytes())
    assert weights.read(f"{url}/edsr.safetensors").network == "edsr"


def test_a_server_that_speaks_no_http_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"good morning\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(RequestError, match=r"x\.pt: cannot be downloaded \("):
            weights.read(f"http://127.0.0.1:{listening.getsockname()[1]}/x.pt")
        thread.join()


def test_a_server_that_falls_silent_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(sources, "_SILENCE", 0.1)
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        pytest.raises(RequestError, match=r"cannot be downloaded \(.*timed out"),
    ):
        weights.read(f"http://127.0.0.1:{listening.getsockname()[1]}/x.pt")


def test_a_url_that_does_not_answer_is_refused(server):
    url, _, _ = server
    with pytest.raises(RequestError, match=r"missing\.pt: cannot be downloaded \(.*404"):
        weights.load_model(f"{url}/missing.pt")


def test_loading_takes_no_draws_from_the_global_generator(model_file):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    weights.load_model(model_file)
    assert torch.equal(torch.rand(1), expected)
