"""The bundle of a real run of a tiny model: sums, lineage, bill, card; cleaned, signed and uploaded."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from tests.hub_stand_in import ADDRESS, READ_TOKEN, WRITE_TOKEN, HubStandIn, hub_stand_in
from tests.integration.command import command_here, digests, succeed_here, write_recipe

PLACES = ("stages/prune", "stages/distill", "student", "exports/onnx", "stages/evaluate")
DOCUMENTS = ("recipe.yaml", "plan.json", "README.md", "report.html", "lineage.json")
DOCUMENTS += ("sbom.cdx.json", "manifest.json")


@pytest.fixture(scope="module")
def finished(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run whose base model's card states a licence; not to be changed."""
    root = tmp_path_factory.mktemp("runs")
    teacher = Path(shutil.copytree(tiny_checkpoint, root / "base"))
    (teacher / "README.md").write_text("---\nlicense: llama3.1\n---\n")
    recipe = write_recipe(
        root / "recipe.yaml",
        *(teacher, tiny_text),
        repair={"method": "off"},
        export={"formats": ["onnx"]},
    )
    return root / "out", succeed_here("run", "--config", recipe, "-o", root / "out")


@pytest.fixture
def run(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "moved" / "out"))


def sums_of(run: Path) -> dict[str, str]:
    lines = (run / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def sha256sum(directory: Path) -> subprocess.CompletedProcess[str]:
    words = [shutil.which("sha256sum") or "sha256sum", "--check", "--strict", "SHA256SUMS"]
    return subprocess.run(words, cwd=directory, capture_output=True, text=True, check=False)


def test_the_sums_are_those_of_another_program_and_cover_everything(run: Path) -> None:
    done = sha256sum(run)
    assert done.returncode == 0, done.stdout
    there = digests(run, (*PLACES, *DOCUMENTS))
    assert sums_of(run) == {name: one for name, one in there.items() if "/tensorboard/" not in name}


@pytest.mark.slow
def test_every_removed_or_altered_file_is_found(run: Path) -> None:
    succeed_here("verify", run)
    for name in sums_of(run):
        path = run / name
        content = path.read_bytes()
        for damage in (path.unlink, lambda path=path, content=content: path.write_bytes(content + b"\n")):
            damage()
            done = command_here("verify", run)
            assert done.returncode == 8, f"{name}: {done.stdout}"
            path.write_bytes(content)
    succeed_here("verify", run)


@pytest.mark.parametrize(
    "line", ["", "x" * 64 + "  README.md", "0" * 64 + "  ../README.md", "0" * 64 + "  README.md"]
)
def test_sums_that_were_edited_are_refused(run: Path, line: str) -> None:
    with (run / "SHA256SUMS").open("a") as file:
        file.write(f"{line}\n")
    assert command_here("verify", run).returncode == 8
    (run / "SHA256SUMS").unlink()
    done = command_here("verify", run)
    assert done.returncode == 8
    assert "the sums of the bundle are missing" in done.stderr


def test_a_repeated_run_keeps_the_signature_of_its_sums(
    tiny_checkpoint: Path, tiny_text: Path, tmp_path: Path
) -> None:
    sections: dict[str, Any] = {"repair": {"method": "off"}, "distill": {"tokens": 0}}
    recipe = write_recipe(
        tmp_path / "recipe.yaml", tiny_checkpoint, tiny_text, **sections, export={"formats": ["huggingface"]}
    )
    out = tmp_path / "out"
    succeed_here("run", "--config", recipe, "-o", out)
    before = (out / "SHA256SUMS").read_bytes()
    (out / "SHA256SUMS.sigstore.json").write_text("{}")
    succeed_here("run", "--config", recipe, "-o", out)
    assert (out / "SHA256SUMS").read_bytes() == before
    assert (out / "SHA256SUMS.sigstore.json").read_text() == "{}"


def test_the_lineage_leads_from_the_teacher_to_every_artifact(run: Path) -> None:
    lineage = json.loads((run / "lineage.json").read_text())
    steps = lineage["steps"]
    assert set(steps) == set(PLACES)
    assert steps["stages/prune"]["made_from"] == ["teacher"]
    assert steps["stages/distill"]["made_from"] == ["stages/prune", "teacher"]
    assert steps["student"]["made_from"] == ["stages/distill"]
    assert steps["exports/onnx"]["made_from"] == ["stages/distill"]
    assert len(steps["stages/distill"]["texts"]) == 1
    assert (lineage["teacher"]["name"], lineage["teacher"]["kind"]) == ("base", "directory")


@pytest.mark.parametrize("field", ["fingerprint", "record_sha256", "made_from"])
def test_a_lineage_that_says_something_else_is_refused_whatever_is_summed(run: Path, field: str) -> None:
    from compressor.bundle.sums import write_sums
    from compressor.runs.manifest import Manifest, read_manifest

    file = run / "lineage.json"
    lineage = json.loads(file.read_text())
    lineage["steps"]["student"][field] = ["teacher"] if field == "made_from" else "0" * 64
    file.write_text(json.dumps(lineage))
    Manifest(run, read_manifest(run)).add_files(["lineage.json"])
    write_sums(run, PLACES, DOCUMENTS)
    done = command_here("verify", run)
    assert done.returncode == 8
    assert f"student: {field}" in done.stderr


def test_the_bill_names_models_texts_and_software(run: Path) -> None:
    bill = json.loads((run / "sbom.cdx.json").read_text())
    parts = {part["bom-ref"]: part for part in bill["components"]}
    assert {"model:teacher", "model:student", "model:exports/onnx"} <= set(parts)
    torch = next(part for part in parts.values() if part["name"] == "torch")
    assert torch["purl"] == f"pkg:pypi/torch@{torch['version']}".replace("+", "%2B")
    weights = next(
        one for one in parts["model:student"]["components"] if one["name"].endswith(".safetensors")
    )
    assert weights["hashes"][0]["content"] == sums_of(run)[weights["name"]]
    assert [part["name"] for part in parts.values() if part["type"] == "data"] == ["text.txt"]
    assert parts["model:student"]["licenses"] == [{"license": {"name": "llama3.1"}}]


def test_the_card_has_what_the_hub_and_the_licence_ask_for(finished: tuple[Path, dict[str, Any]]) -> None:
    out, summary = finished
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "llama3.1"
    assert front["base_model_relation"] == "finetune"
    (index,) = front["model-index"]
    assert index["name"] == "Llama-out"
    measured = summary["evaluation"]["models"]["distilled"]["perplexity"]
    assert index["results"][0]["metrics"][0]["value"] == round(measured, 4)
    assert huggingface_hub.ModelCard(card).data.license == "llama3.1"
    assert "\n# Llama-out\n" in card
    assert "\nBuilt with Llama\n" in card
    assert "| onnx | fp32 | any | onnxruntime" in card
    assert "No server was tried" in card
    scratch = summary["plan"]["training"]["from_scratch"]
    assert f"{scratch['tokens_ratio']:,.1f}x the tokens" in card
    assert "up to 40x fewer" in card


def test_cleaning_frees_the_stages_and_keeps_what_is_released(run: Path, finished: Any) -> None:
    before = digests(run, ("student", "exports"))
    large = [path for path in (run / "stages").rglob("*") if path.is_file() and path.stat().st_size > 1 << 16]
    freed = sum(path.stat().st_size for path in large)
    assert large
    assert succeed_here("clean", run)["freed_bytes"] == freed
    assert [path for path in large if path.exists()] == []
    assert digests(run, ("student", "exports")) == before
    states = {Path(one["path"]).name: one["status"] for one in succeed_here("verify", run)["checked"]}
    assert states["distill"] == states["prune"] == "cleaned: contents not verified"
    assert states["student"] == "ok" or states["student"] in ("bit-equal", "passed", "not executed")
    assert succeed_here("clean", run)["freed_bytes"] == 0
    done = command_here("gate", run, "--kl", "1000")
    assert done.returncode == 0, done.stderr
    (run / "student" / "config.json").write_text("{}")
    assert command_here("verify", run).returncode == 8


@pytest.mark.parametrize("places", [["prune"], ["prune", "distill"]], ids=["within", "before the sums"])
def test_a_cleaning_that_was_interrupted_is_finished(run: Path, tmp_path: Path, places: list[str]) -> None:
    """As a kill leaves it: marks and deletions of some stages, and the sums of before."""
    undisturbed = Path(shutil.copytree(run, tmp_path / "undisturbed"))
    succeed_here("clean", undisturbed)
    for place in places:
        mark = undisturbed / "stages" / place / "cleaned.json"
        shutil.copy(mark, run / "stages" / place)
        for name in json.loads(mark.read_text())["deleted"]:
            (run / "stages" / place / name).unlink()
    done = command_here("verify", run)
    assert (done.returncode, "a cleaning of this run was interrupted" in done.stderr) == (8, True)
    assert f"try: finish it: compress-export clean {run}" in " ".join(done.stderr.split())
    succeed_here("clean", run)
    succeed_here("verify", run)
    assert digests(run, (*PLACES, "SHA256SUMS")) == digests(undisturbed, (*PLACES, "SHA256SUMS"))
    (run / "stages" / "prune" / "config.json").unlink()
    assert command_here("clean", run).returncode == 8


def test_a_cleaned_run_is_finished_and_cannot_be_continued(run: Path) -> None:
    succeed_here("clean", run)
    recipe = run / "recipe.yaml"
    shutil.copy(recipe, run.parent / "recipe.yaml")
    again = ("run", "--config", run.parent / "recipe.yaml", "-o", run)
    succeed_here(*again)
    succeed_here("verify", run)
    done = command_here(*again, "--restart-from", "distill")
    assert done.returncode == 2
    assert "--restart-from prune" in done.stderr
    succeed_here(*again, "--restart-from", "prune", "--keep", "student,exports")
    assert (run / "stages" / "distill" / "cleaned.json").is_file()
    succeed_here("verify", run)


@pytest.mark.parametrize("keep", ["exports", "student,stage", ""])
def test_parts_that_there_are_not_are_refused(run: Path, keep: str) -> None:
    assert command_here("clean", run, "--keep", keep).returncode == 2


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """The real client of the hub, with a token that may write, beside a hub on this machine."""
    with hub_stand_in(tmp_path / "hub", monkeypatch, WRITE_TOKEN) as served:
        yield served


def test_what_is_uploaded(run: Path, hub: HubStandIn) -> None:
    refused = command_here("publish", run, "--push-to-hub", "me/small")
    assert refused.returncode == 2
    assert "begins with Llama" in refused.stderr
    made = succeed_here("publish", run, "--push-to-hub", "me/Llama-small", "--private")
    assert made["hub"].startswith(f"{ADDRESS}/me/Llama-small/commit/")
    assert [one["visibility"] for one in hub.created] == ["private"]
    files = hub.files("me/Llama-small")
    assert {"config.json", "model.safetensors", "README.md", "SHA256SUMS", "exports/onnx/model.onnx"} <= files
    assert (hub.root / "me/Llama-small" / "README.md").read_text() == (run / "README.md").read_text()
    assert not [name for name in files if name.startswith("stages/")]
    (run / "student" / "config.json").write_text("{}")
    assert command_here("publish", run, "--push-to-hub", "me/Llama-small").returncode == 8


def test_a_download_is_checked_by_the_sums_that_it_holds(run: Path, hub: HubStandIn) -> None:
    before = (run / "SHA256SUMS").read_bytes()
    succeed_here("publish", run, "--push-to-hub", "me/Llama-small")
    download = hub.root / "me/Llama-small"
    done = sha256sum(download)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(sums_of(download)) == hub.files("me/Llama-small") - {"SHA256SUMS"}
    assert (run / "SHA256SUMS").read_bytes() == before


def test_a_signature_of_other_sums_does_not_stay_in_a_repository(run: Path, hub: HubStandIn) -> None:
    """Neither the local bundle's, nor that of an earlier upload."""
    (run / "SHA256SUMS.sigstore.json").write_text("{}")
    earlier = hub.root / "me/Llama-small" / "SHA256SUMS.sigstore.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("{}")
    succeed_here("publish", run, "--push-to-hub", "me/Llama-small")
    assert not earlier.exists()
    assert (run / "SHA256SUMS.sigstore.json").exists()


@pytest.mark.parametrize("token", [None, READ_TOKEN])
def test_a_token_that_may_not_write_is_refused_before_any_work(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    words = ("run", "--config", finished[0].parent / "recipe.yaml", "--push-to-hub", "me/Llama-small")
    with hub_stand_in(tmp_path / "hub", monkeypatch, token) as hub:
        done = command_here(*words, "-o", tmp_path / "out")
        assert done.returncode == 9
        assert "a token that may write" in done.stderr
        assert not (tmp_path / "out").exists()
        asked = len(hub.requests)
        succeed_here(*words, "-o", tmp_path / "out", "--dry-run")
        assert len(hub.requests) == asked


def test_the_result_is_told_although_the_upload_fails(
    finished: tuple[Path, dict[str, Any]], hub: HubStandIn
) -> None:
    out, summary = finished
    words = ("run", "--config", out.parent / "recipe.yaml", "-o", out, "--push-to-hub")
    done = command_here(*words, "other/Llama-small", "--json")
    assert done.returncode == 9
    assert "cannot be uploaded" in done.stderr
    assert json.loads(done.stdout)["plan"] == summary["plan"]
    succeed_here(*words, "company/Llama-small")
    assert "model.safetensors" in hub.files("company/Llama-small")


def test_what_is_published_must_be_asked_for_and_finished(run: Path, tmp_path: Path) -> None:
    assert command_here("publish", run).returncode == 2
    assert command_here("publish", run, "--private", "--sign").returncode == 2
    assert command_here("publish", tmp_path, "--push-to-hub", "me/x").returncode == 2
    assert command_here("clean", tmp_path).returncode == 2
