"""Tables of hashpose-bench report: means and spreads over seeds, what is missing, what others published."""

import json
import math
import statistics
from pathlib import Path

import pytest
from run_folders import ENVIRONMENT, make_run

from hashpose_ns.bench.reporting.document import Findings, write_report
from hashpose_ns.bench.reporting.frame import (
    METRICS,
    PSNR,
    ROTATION,
    duration,
    in_order,
    make_aggregates,
    make_groups,
    read_runs,
)
from hashpose_ns.bench.reporting.published import protocols
from hashpose_ns.bench.reporting.tables import group_as_json

QUICK = {"records": 3, "pictures": 0}


def rotation(degrees: float) -> dict:
    return {"barf_rotation_deg_mean": degrees}


def groups_of(root: Path):
    runs, problems = read_runs(root)
    assert problems == []
    return make_groups(in_order(runs))


def markdown(root: Path, success_deg: float = 0.5) -> str:
    """The report's text, without figures."""
    runs, problems = read_runs(root)
    runs = in_order(runs)
    groups = make_groups(runs)
    write_report(
        Findings("small", runs, problems, groups, make_aggregates(groups), {}, success_deg, "the command"), root
    )
    return (root / "report.md").read_text(encoding="utf-8")


def rows(text: str, method: str) -> list:
    """The cells of all table rows of a method, the first table's first."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {method} ")]
    return [[cell.strip(" *") for cell in line.strip("| ").split(" | ")] for line in lines]


def cell(text: str, method: str, heading: str) -> str:
    """The cell of a method in the first table that has a column of this heading."""
    table = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append([part.strip(" *").replace("\\", "") for part in line[1:-1].split("|")])
        elif table:
            if heading in table[0]:
                return next(row for row in table if row[0] == method)[table[0].index(heading)]
            table = []
    raise AssertionError(f"no column {heading}")


def test_mean_and_sample_deviation_over_seeds(tmp_path):
    for seed, degrees in enumerate((0.5, 0.7, 0.9)):
        make_run(tmp_path, seed=seed, results={**rotation(degrees), "pose_error_after_translation_mean": 0.01}, **QUICK)
    text = markdown(tmp_path)
    assert cell(text, "hash", "rotation [deg]") == "0.700 ± 0.200"
    assert cell(text, "hash", "translation x100") == "1.000 ± 0.000"
    assert cell(text, "hash", "seeds") == "3"
    (group,) = groups_of(tmp_path)
    numbers = group_as_json(group, 0.5)["rows"][0]["metrics"]["rotation_deg"]
    assert numbers["mean"] == pytest.approx(0.7)
    assert numbers["standard_deviation"] == pytest.approx(0.2)
    assert (numbers["n"], numbers["seeds"]) == (3, {"0": 0.5, "1": 0.7, "2": 0.9})


def test_one_seed_has_no_spread(tmp_path):
    make_run(tmp_path, results=rotation(0.25), **QUICK)
    text = markdown(tmp_path)
    assert cell(text, "hash", "rotation [deg]") == "0.250 ± -"
    (group,) = groups_of(tmp_path)
    assert group_as_json(group, 0.5)["rows"][0]["metrics"]["rotation_deg"]["standard_deviation"] is None


def test_barf_exact_rotation_is_the_headline_and_float64_where_it_is_missing(tmp_path):
    make_run(tmp_path, results=rotation(0.125), **QUICK)
    make_run(
        tmp_path, preset="other", results={"barf_rotation_deg_mean": None, "pose_error_after_rotation_deg_mean": 3.0}
    )
    text = markdown(tmp_path)
    assert cell(text, "hash", "rotation [deg]") == "0.125 ± -"
    assert cell(text, "other", "rotation [deg]") == "3.000 ± -"


def test_worst_camera_is_that_of_all_seeds(tmp_path):
    for seed, worst in enumerate((4.0, 17.0, 5.0)):
        make_run(tmp_path, seed=seed, results={"pose_error_after_rotation_deg_max": worst}, **QUICK)
    assert cell(markdown(tmp_path), "hash", "worst camera") == "17.00"


def test_success_counts_failed_runs_and_no_unfinished_ones(tmp_path):
    make_run(tmp_path, seed=0, results=rotation(0.49), **QUICK)
    make_run(tmp_path, seed=1, results=rotation(0.51), **QUICK)
    make_run(tmp_path, seed=2, state="failed", **QUICK)
    make_run(tmp_path, seed=3, state="unfinished", **QUICK)
    text = markdown(tmp_path)
    assert cell(text, "hash", "seeds") == "2, 1 failed, 1 unfinished"
    assert cell(text, "hash", "below 0.5 deg") == "1 of 3"
    assert cell(markdown(tmp_path, success_deg=0.6), "hash", "below 0.6 deg") == "2 of 3"
    assert "2 done, 1 failed, 1 unfinished" in text
    assert rows(text, "chair / hash / seed 2")[0][1:] == ["failed", "1000", "The loss is not a number"]
    assert rows(text, "chair / hash / seed 3")[0][1] == "unfinished"
    assert "Error: &lt;loss&gt; | nan" in text  # the end of its log, as it was


def test_preset_whose_runs_all_failed_has_a_row(tmp_path):
    make_run(tmp_path, **QUICK)
    make_run(tmp_path, preset="broken", state="failed", **QUICK)
    text = markdown(tmp_path)
    assert cell(text, "broken", "seeds") == "0, 1 failed"
    assert cell(text, "broken", "rotation [deg]") == "not measured"
    assert cell(text, "broken", "below 0.5 deg") == "0 of 1"


def test_what_is_not_measured_says_so_and_columns_nobody_has_are_left_out(tmp_path):
    make_run(tmp_path, results={"psnr_tto": None, "ssim_tto": None}, **QUICK)
    make_run(tmp_path, preset="other", seed=0, results={"lpips_tto": 0.07}, **QUICK)
    make_run(tmp_path, preset="other", seed=1, results={"lpips_tto": None}, **QUICK)
    text = markdown(tmp_path)
    assert cell(text, "hash", "PSNR, TTO [dB]") == "not measured"
    assert cell(text, "hash", "LPIPS, TTO") == "not measured"
    assert cell(text, "other", "LPIPS, TTO") == "0.070 ± - (n 1)"
    (tmp_path / "second").mkdir()
    make_run(tmp_path / "second", **QUICK)
    text = markdown(tmp_path / "second")
    assert "LPIPS, TTO: not measured." in text
    with pytest.raises(AssertionError, match="no column"):
        cell(text, "hash", "LPIPS, TTO")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_not_averaged_away(tmp_path, bad):
    make_run(tmp_path, seed=0, results=rotation(0.2), **QUICK)
    make_run(tmp_path, seed=1, results={**rotation(bad), "psnr_tto": bad}, **QUICK)
    text = markdown(tmp_path)
    assert cell(text, "hash", "rotation [deg]") == "not finite in 1 of 2"
    assert cell(text, "hash", "PSNR, TTO [dB]") == "not finite in 1 of 2"
    assert cell(text, "hash", "below 0.5 deg") == "1 of 2"
    (group,) = groups_of(tmp_path)
    numbers = json.loads(json.dumps(group_as_json(group, 0.5), allow_nan=False))["rows"][0]["metrics"]["rotation_deg"]
    assert (numbers["mean"], numbers["seeds"]) == (None, {"0": 0.2, "1": None})


def test_best_mean_is_bold(tmp_path):
    for preset, degrees, psnr in (("one", 0.3, 20.0), ("two", 0.2, 25.0), ("three", 0.4, 25.0)):
        make_run(tmp_path, preset=preset, results={**rotation(degrees), "psnr_tto": psnr, "ssim_tto": 0.5}, **QUICK)
    lines = {line.split(" ")[1]: line for line in reversed(markdown(tmp_path).splitlines()) if line.startswith("| ")}
    assert "| **0.200 ± -** |" in lines["two"]
    assert "| **25.00 ± -** |" in lines["two"] and "| **25.00 ± -** |" in lines["three"]
    assert "**0.500" not in "".join(lines.values())  # all the same: nothing to choose


def test_movement_from_given_poses_is_not_called_an_error(tmp_path):
    make_run(tmp_path, start="given", left=0.02, **QUICK)
    text = markdown(tmp_path)
    (group,) = groups_of(tmp_path)
    moved = json.loads((tmp_path / "small/chair/hash/seed_0/results.json").read_text())["results"]
    expected = moved["pose_change_rotation_deg_mean"]
    assert cell(text, "hash", "rotation [deg]") == f"{expected:.3f} ± - †"
    assert cell(text, "hash", "before [deg]") == "-"
    assert cell(text, "hash", "below 0.5 deg") == "-"
    assert "† How far cameras moved from the poses that training was given." in text
    assert group_as_json(group, 0.5)["rows"][0]["poses_moved_from_given"] is True


def test_movements_are_never_the_best_error(tmp_path):
    make_run(tmp_path, preset="fixed", start="given", left=0.0, asked={"scenario": "blender-barf-0.15"}, **QUICK)
    make_run(tmp_path, preset="one", results=rotation(0.3), **QUICK)
    make_run(tmp_path, preset="two", results=rotation(0.2), **QUICK)
    text = markdown(tmp_path)
    assert cell(text, "fixed", "rotation [deg]") == "0.000 ± - †"
    assert "| **0.200 ± -** |" in text and "**0.000" not in text


def test_broken_folders_are_named_and_left_out(tmp_path):
    make_run(tmp_path, **QUICK)
    (make_run(tmp_path, seed=1, **QUICK) / "run.json").write_text('{"suite": ')
    (make_run(tmp_path, seed=2, **QUICK) / "run.json").write_text('{"suite": "small"}')
    text = markdown(tmp_path)
    assert cell(text, "hash", "seeds") == "1"
    assert text.count("seed\\_1 is left out: JSONDecodeError") == 2  # on top, and among the runs without results
    assert "seed\\_2 is left out: KeyError" in text


def test_log_line_that_is_being_written_is_left(tmp_path):
    folder = make_run(tmp_path, state="unfinished", records=8)
    with open(folder / "pose_errors.jsonl", "a") as log:
        log.write('{"step": 999, "train_se')
    run = read_runs(tmp_path)[0].iloc[0]
    assert run.state == "unfinished"
    assert run.last_step == json.loads((folder / "pose_errors.jsonl").read_text().splitlines()[-2])["step"]


def test_results_count_even_if_an_old_failure_is_left(tmp_path):
    folder = make_run(tmp_path, **QUICK)
    (folder / "failure.json").write_text('{"error": "old"}')
    assert read_runs(tmp_path)[0].state.tolist() == ["done"]


# -- warnings ----------------------------------------------------------------------------------------------------------


def test_nothing_to_warn_of(tmp_path):
    for seed in range(2):
        make_run(tmp_path, seed=seed, **QUICK)
    assert groups_of(tmp_path)[0].warnings == []
    assert "WARNING" not in markdown(tmp_path)


@pytest.mark.parametrize(
    "other, words",
    [
        ({"commit": "fedcba9876543210"}, "come from 2 commits: 0123456789ab (hash seed 0); fedcba987654 (hash seed 1)"),
        ({"environment": {**ENVIRONMENT, "gpu": "A GPU"}}, "come from 2 machines: A processor, 2 cores, 1 thread"),
        ({"commit": "0123456789ab with uncommitted changes"}, "changes that are in no commit, so not repeatable: hash"),
        ({"settings": {"max_num_iterations": 7}}, "with different settings: max_num_iterations"),
    ],
)
def test_runs_that_should_not_be_compared_are_warned_of(tmp_path, other, words):
    make_run(tmp_path, seed=0, **QUICK)
    make_run(tmp_path, seed=1, asked=other, **QUICK)
    assert any(words in warning for warning in groups_of(tmp_path)[0].warnings)
    text = markdown(tmp_path)
    assert "Read the remarks below the table before comparing its rows: chair" in text


def test_missing_seeds_are_named(tmp_path):
    for seed in range(3):
        make_run(tmp_path, preset="one", seed=seed, **QUICK)
    make_run(tmp_path, preset="two", seed=1, **QUICK)
    assert groups_of(tmp_path)[0].warnings == ["two lacks seeds 0, 2 of this table."]


# -- published ---------------------------------------------------------------------------------------------------------


def test_published_rows_stand_beside_runs_at_full_scale(tmp_path):
    make_run(tmp_path, asked={"scale": "paper"}, **QUICK)
    text = markdown(tmp_path)
    paper = next(line for line in text.splitlines() if line.startswith("| Heo et al., the paper"))
    assert "*[published by Heo et al. 2023]* |" in paper and "not comparable" not in text
    assert [part.strip() for part in paper.split("|")][3:8] == ["not given", "0.085", "0.365", "not given", "31.95"]
    assert "arXiv 2302.01571" in text


@pytest.mark.parametrize("asked", [{"scale": "small"}, {"scale": "paper", "command": "run --set max_num_iterations=9"}])
def test_published_rows_beside_other_settings_say_that_they_are_not_comparable(tmp_path, asked):
    make_run(tmp_path, asked=asked, **QUICK)
    text = markdown(tmp_path)
    published = [line for line in text.splitlines() if "published by" in line]
    assert len(published) == 5
    assert all("not comparable]*" in line for line in published)


def test_no_published_rows_for_other_scenes_and_scenarios(tmp_path):
    make_run(tmp_path, scene="my-scene", asked={"scale": "paper"}, **QUICK)
    make_run(tmp_path, scene="fern", asked={"scale": "paper"}, **QUICK)  # an LLFF scene, but Blender's protocol
    make_run(tmp_path, scene="chair", asked={"scale": "paper", "scenario": "blender-barf-0.05"}, **QUICK)
    assert "published by" not in markdown(tmp_path)


def test_published_means_agree_with_their_scenes():
    # but for Joint-TensoRF's PSNR, whose printed mean is not that of its printed scenes
    checked = 0
    for scenario, protocol in protocols().items():
        for source, means in protocol.means.items():
            tables = [values[source] for values in protocol.scenes.values() if source in values]
            for i, (name, mean) in enumerate(zip(protocol.columns, means)):
                column = [values[i] for values in tables if len(values) > i]
                if mean is None or None in column or len(column) != len(protocol.all_scenes):
                    continue
                if (scenario, source, name) == ("blender-barf-0.15", "joint-tensorf", "psnr"):
                    assert statistics.fmean(column) == pytest.approx(32.1625)
                    continue
                assert statistics.fmean(column) == pytest.approx(mean, abs=0.006 if name == "psnr" else 0.0025)
                checked += 1
    assert checked >= 20


def test_every_published_number_names_its_source():
    names = set(METRICS)
    for protocol in protocols().values():
        assert set(protocol.columns) <= names
        for rows in [protocol.rows(scene) for scene in protocol.scenes] + [protocol.mean_rows(protocol.all_scenes)]:
            assert rows
            for row in rows:
                assert row.by and row.source and set(row.values) <= names and row.values


def test_corrected_misprints():
    llff, blender = protocols()["llff-identity"], protocols()["blender-barf-0.15"]
    assert {row.title: row.values for row in llff.rows("fern")}["BARF"]["translation_x100"] == 0.192
    means = {row.title: row.values for row in blender.mean_rows(blender.all_scenes)}
    assert means["GARF"]["psnr"] == 29.09
    assert llff.corrections and blender.corrections


# -- means over scenes -------------------------------------------------------------------------------------------------


def test_means_over_scenes_are_means_of_scene_means(tmp_path):
    for scene, values in {"chair": (0.1, 0.3), "lego": (0.4,)}.items():
        for seed, degrees in enumerate(values):
            make_run(tmp_path, scene=scene, seed=seed, results=rotation(degrees), asked={"scale": "paper"}, **QUICK)
    make_run(tmp_path, scene="lego", preset="partial", results=rotation(0.05), asked={"scale": "paper"}, **QUICK)
    (aggregate,) = make_aggregates(groups_of(tmp_path))
    assert aggregate.mean("hash", ROTATION) == (pytest.approx((0.2 + 0.4) / 2), 2)
    text = markdown(tmp_path)
    assert cell(text, "hash", "scenes") == "2 of 2"
    assert cell(text, "hash", "rotation [deg]") == "0.300"
    assert cell(text, "partial", "scenes") == "1 of 2"
    published = {row.title: row for row in aggregate.published}
    assert published["BARF"].values["rotation_deg"] == pytest.approx((0.096 + 0.082) / 2)
    assert "mean over the same 2 scenes, taken here" in published["BARF"].note


def test_printed_means_stand_where_all_scenes_are_there():
    protocol = protocols()["blender-barf-0.15"]
    means = {row.title: row.values for row in protocol.mean_rows(sorted(protocol.all_scenes))}
    assert means["BARF"]["ssim"] == 0.930 and means["BARF"]["rotation_deg"] == 0.193
    assert means["Joint-TensoRF"]["psnr"] == 32.07
    assert not any("ablation" in row.title for row in protocol.mean_rows(["hotdog", "chair"]))


def test_one_scene_or_several_scenarios_have_no_mean(tmp_path):
    make_run(tmp_path, scene="chair", **QUICK)
    make_run(tmp_path, scene="fern", start="identity", **QUICK)
    assert make_aggregates(groups_of(tmp_path)) == []


def test_scene_that_is_not_finite_spoils_the_mean(tmp_path):
    make_run(tmp_path, scene="chair", results={"psnr_tto": 30.0}, **QUICK)
    make_run(tmp_path, scene="lego", results={"psnr_tto": math.nan}, **QUICK)
    (aggregate,) = make_aggregates(groups_of(tmp_path))
    assert aggregate.mean("hash", PSNR) == (None, 2)
    assert cell(markdown(tmp_path), "hash", "PSNR, TTO [dB]") == "not finite"


# -- order and words ---------------------------------------------------------------------------------------------------


def test_presets_stand_in_the_order_of_their_suite(tmp_path):
    for i, preset in enumerate(("garf", "naive", "paper", "extra")):
        make_run(tmp_path, "smoke", "demo-chair", preset, asked={"started": f"2025-01-01T00:0{i}:00"}, **QUICK)
    assert list(groups_of(tmp_path)[0].presets) == ["paper", "naive", "garf", "extra"]


def test_presets_of_an_unknown_suite_stand_as_they_were_begun(tmp_path):
    for i, preset in enumerate(("b", "a", "c")):
        make_run(tmp_path, preset=preset, asked={"started": f"2025-01-01T00:0{i}:00"}, **QUICK)
    assert list(groups_of(tmp_path)[0].presets) == ["b", "a", "c"]


def test_durations():
    assert [duration(s) for s in (3.21, 48.2, 119.6, 750.0, 12240.0)] == ["3.2 s", "48 s", "120 s", "12.5 min", "3.4 h"]
