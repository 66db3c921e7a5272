"""hashpose-bench report as a command: what it writes, what it refuses, and what it leaves alone."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Dict, List

import pytest
from PIL import Image
from run_folders import chair_poses, forward_facing_poses, make_run

from hashpose_ns.bench.report import Report
from hashpose_ns.errors import HashPoseError


class Page(HTMLParser):
    """What a browser would see of a page: its texts, tables and pictures; unbalanced elements are an error."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: List[str] = []
        self.links: List[str] = []
        self.ids: List[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                self.links.append(value)
            elif name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data + " "


def contents(folder: Path) -> Dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def bare_run(root: Path, suite: str = "small", **settings) -> Path:
    """A run of which there is nothing to draw, so that its report takes no time."""
    folder = make_run(root, suite, records=2, pictures=0, **settings)
    for name in ("pose_errors.jsonl", "pose_history.npys", "cameras.npz"):
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    """A bench's output: a suite in the middle of its work, its report, and another suite."""
    root = tmp_path_factory.mktemp("bench")
    poses = chair_poses(12)
    for seed in range(2):
        make_run(root, preset="hash", seed=seed, reference=poses, asked={"title": "Hash | grid <1>"})
        make_run(root, preset="barf", seed=seed, reference=poses, left=0.1, state="failed" if seed else "done")
    make_run(root, preset="off", reference=poses, left=1.0, state="unfinished")
    make_run(root, scene="fern", preset="hash", start="identity", reference=forward_facing_poses(9))
    make_run(root, "other", preset="other", reference=poses)
    Report(runs=root, suite="small").main()
    return root


def test_it_writes_its_files_and_figures(bench):
    written = contents(bench / "small" / "report")
    assert {"report.md", "report.html", "summary.json"} <= set(written)
    figures = [name for name in written if name.startswith("figures/")]
    assert len(figures) == 10 and set(written) == {
        "report.md", "report.html", "summary.json", "files.json", *figures,
    }  # fmt: skip
    for name in figures:
        image = Image.open(io.BytesIO(written[name]))
        assert min(image.size) > 200
        assert image.convert("L").getextrema()[0] < 100  # something is drawn
        assert len(written[name]) < 300_000
    assert set(json.loads(written["files.json"])["files"]) == set(written)


def test_html_is_whole_and_needs_nothing_else(bench):
    text = (bench / "small/report/report.html").read_text(encoding="utf-8")
    page = Page(text)
    pictures = [link for link in page.links if link.startswith("data:")]
    assert len(pictures) == 10
    for picture in pictures:
        kind, _, data = picture.partition(";base64,")
        assert Image.open(io.BytesIO(base64.b64decode(data))).format.lower() == kind.removeprefix("data:image/")
    anchors = [link for link in page.links if not link.startswith("data:")]
    assert len(anchors) >= 4 and all(link[0] == "#" and link[1:] in page.ids for link in anchors)
    assert not re.search(r"https?:|url\(|@import", re.sub(r"data:[^\"]*", "", text))
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert "Hash | grid <1>" in page.text and "Error: <loss> | nan" in page.text
    assert "published by Lin et al. 2021" in page.text and "other scale: not comparable" in page.text
    assert text.count('<tr class="published">') >= 6 and text.count("<table>") >= 5


def test_markdown_has_whole_tables_and_its_pictures(bench):
    folder = bench / "small" / "report"
    text = (folder / "report.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(pictures) == 10 and all((folder / picture).is_file() for picture in pictures)
    columns = 0
    for line in text.splitlines():
        count = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not (columns and count) or count == columns, line
        columns = count
    assert r"Hash \| grid &lt;1&gt;" in text


def test_summary_holds_the_numbers_of_this_suite_alone(bench):
    text = (bench / "small/report/summary.json").read_text(encoding="utf-8")
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (summary["made_by"], summary["suite"]) == ("hashpose-bench report", "small")
    assert {(run["scene"], run["preset"], run["seed"], run["state"]) for run in summary["runs"]} == {
        ("chair", "hash", 0, "done"),
        ("chair", "hash", 1, "done"),
        ("chair", "barf", 0, "done"),
        ("chair", "barf", 1, "failed"),
        ("chair", "off", 0, "unfinished"),
        ("fern", "hash", 0, "done"),
    }
    assert [run["error"] for run in summary["runs"] if run["state"] == "failed"] == ["The loss is not a number"]
    table = next(table for table in summary["tables"] if table["scene"] == "chair")
    row = next(row for row in table["rows"] if row["preset"] == "hash")
    results = [json.loads((bench / f"small/chair/hash/seed_{seed}/results.json").read_text()) for seed in range(2)]
    psnr = [result["results"]["psnr_tto"] for result in results]
    assert row["metrics"]["psnr"]["mean"] == pytest.approx(sum(psnr) / 2)
    assert row["metrics"]["train_seconds"]["seeds"] == {"0": 40.0, "1": 41.0}
    assert row["seeds"] == {"done": [0, 1], "failed": [], "unfinished": []}
    assert {entry["title"] for entry in table["published"]} >= {"BARF", "GARF", "Heo et al., the paper"}
    assert table["published_comparable"] is False
    run = next(run for run in summary["runs"] if (run["preset"], run["seed"], run["scene"]) == ("hash", 1, "chair"))
    assert run["results"] == results[1]["results"] and run["curve"]["step"][-1] == 1999
    assert str(bench) not in text  # a record may be published


def test_main_numbers_and_failures_are_printed(tmp_path, capsys):
    bare_run(tmp_path, results={"barf_rotation_deg_mean": 0.123, "psnr_tto": 31.5})
    bare_run(tmp_path, seed=1, state="failed")
    Report(runs=tmp_path).main()
    printed = " ".join(capsys.readouterr().out.split())
    assert "0.123 ± -" in printed and "31.50 ± -" in printed
    assert "failed: chair / hash / seed 1: The loss is not a number" in printed
    assert f"Report: {tmp_path / 'small/report/report.html'}" in printed


def test_earlier_report_is_replaced_as_a_whole(tmp_path):
    bare_run(tmp_path, scene="older")
    bare_run(tmp_path, scene="chair")
    Report(runs=tmp_path).main()
    folder = tmp_path / "small" / "report"
    assert len(json.loads(contents(folder)["summary.json"])["runs"]) == 2
    shutil.rmtree(tmp_path / "small" / "older")
    Report(runs=tmp_path).main()
    assert len(json.loads(contents(folder)["summary.json"])["runs"]) == 1
    assert [path.name for path in (tmp_path / "small").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["my notes.txt", "report.md", "figures/mine_curves.png"])
def test_folder_with_anything_else_is_never_replaced(tmp_path, name):
    bare_run(tmp_path)
    Report(runs=tmp_path).main()
    folder = tmp_path / "small" / "report"
    (folder / "figures").mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    before = contents(folder)
    with pytest.raises(HashPoseError, match=f"{name} in it (does not come from a report|was changed)"):
        Report(runs=tmp_path).main()
    with pytest.raises(HashPoseError, match="does not come from a report"):
        Report(runs=tmp_path, output_dir=tmp_path).main()  # the runs themselves
    assert contents(folder) == before


def test_failure_on_the_way_leaves_the_earlier_report(tmp_path, monkeypatch):
    from hashpose_ns.bench.reporting import document

    bare_run(tmp_path)
    Report(runs=tmp_path).main()
    before = contents(tmp_path)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(document, "_html", full)
    with pytest.raises(OSError):
        Report(runs=tmp_path).main()
    assert contents(tmp_path) == before
    with pytest.raises(OSError):
        Report(runs=tmp_path, output_dir=tmp_path / "a" / "b").main()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"runs": Path("nowhere")}, "There is no folder .*nowhere; give the one"),
        ({"runs": Path("empty")}, "empty holds no runs; make some with hashpose-bench"),
        ({"runs": Path("broken")}, r"broken holds no runs \(small/chair/hash/seed_0 is left out: JSONDecodeError"),
        ({"runs": Path("two")}, "two holds runs of several suites; choose one with --suite: other, small"),
        ({"runs": Path("two"), "suite": "tiny"}, "no runs of the suite 'tiny'; it holds other, small"),
    ],
)
def test_one_sentence_where_there_is_nothing_to_report(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for suite in ("small", "other"):
        bare_run(tmp_path / "two", suite)
    (bare_run(tmp_path / "broken") / "run.json").write_text("{")
    before = contents(tmp_path)
    with pytest.raises(HashPoseError, match=sentence) as error:
        Report(**arguments).main()
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_runs_that_have_only_just_begun(tmp_path):
    bare_run(tmp_path, state="unfinished")
    Report(runs=tmp_path).main()
    written = contents(tmp_path / "small" / "report")
    assert set(written) == {"report.md", "report.html", "summary.json", "files.json"}
    assert "1 unfinished" in written["report.md"].decode()


def test_a_user_error_is_a_sentence_and_exit_code_1(tmp_path):
    arguments = [sys.executable, "-m", "hashpose_ns.bench.cli", "report", "--runs", str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 1
    assert "holds no runs; make some with hashpose-bench" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout + done.stderr


def test_settings_alone_are_imported_before_it_is_run():
    code = "import sys, hashpose_ns.bench.report as r; r.Report(); print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "matplotlib", "nerfstudio", "numpy", "PIL", "pandas"} & set(loaded)
