"""The stand-in for a hub, of which every test has its own."""

import os

import pytest

from tests.hub_stand_in import Hub, serving
from tests.unit.models.hub_runs import WEIGHTS


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    """A stand-in that the library takes for the hub; pauses are short, and the cache and the login are the test's own."""
    import huggingface_hub
    from huggingface_hub import constants

    source = tmp_path / "source"
    (source / "onnx").mkdir(parents=True)
    (source / WEIGHTS).write_bytes(os.urandom(300_000))
    (source / "tokenizer.model").write_bytes(os.urandom(30_000))
    (source / "config.json").write_text('{"model_type": "llama"}')
    (source / "tokenizer.json").write_text('{"version": "1.0"}')
    for unwanted in ("pytorch_model.bin", "modeling.py", "flax_model.msgpack", "consolidated.safetensors"):
        (source / unwanted).write_bytes(b"unwanted")
    (source / "onnx" / WEIGHTS).write_bytes(b"unwanted")
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BITPLAN_HUB_PAUSE", "0.01")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    with serving(source) as served:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield served
    huggingface_hub.close_session()
