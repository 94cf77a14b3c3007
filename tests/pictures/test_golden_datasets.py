"""Several datasets as sd-scripts counts them: pictures, repeats, balance, buckets, batches, steps and captions."""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from trainer.config import TrainingConfig, batch_sizes, config_from_layers, datasets_of, load_layers, to_flat
from trainer.config.assembly import Assembled
from trainer.ground.errors import ConfigError, DataError
from trainer.pictures.batches import Example, examples, held_out_examples
from trainer.pictures.captions import render
from trainer.pictures.counts import count
from trainer.pictures.masks import mask_of
from trainer.pictures.report import DatasetReport
from trainer.pictures.scan import scan
from trainer.planning.timetable import make_timetable
from trainer.results.datasets_entry import datasets_entry
from trainer.results.metadata import settings_without_paths

GOLDEN = json.loads((Path(__file__).parent.parent / "data" / "golden_datasets.json").read_text(encoding="utf-8"))
CONFIGS = {case["name"]: case for case in GOLDEN["configs"]}
REFUSED = {case["name"]: case for case in GOLDEN["refused"]["cases"]}

WHOLE = [
    "two-resolutions",
    "regularisation",
    "bucket-settings",
    "both-styles",
    "captions",
    "items-flip-crop-alpha",
    "masked-loss",
    "validation",
    "validation-without-seed",
]
"""Files that mean here what they mean there, in everything."""

OTHERWISE = {
    "metadata-json": {"m/c.png"},  # its image_size is not true: pictures themselves are asked here
    "metadata-jsonl": {"a.png"},  # two lists with the same name in them: there the second takes the first one's place
}
"""{file: pictures of it that are otherwise here, on purpose}."""


def drawn(size: tuple[int, int], mode: str) -> Image.Image:
    """Return the picture that the numbers were made of."""
    across, down = numpy.meshgrid(numpy.arange(size[0]), numpy.arange(size[1]))
    channels = [(across + 2 * down) % 256, (3 * across) % 256, (5 * down) % 256, (7 * across + 11 * down) % 256]
    if mode == "MASK":
        return Image.fromarray(numpy.where(across < size[0] // 3, 0, 255).astype(numpy.uint8))
    stacked = numpy.stack(channels, axis=-1).astype(numpy.uint8)
    return Image.fromarray({"RGB": stacked[..., :3], "RGBA": stacked, "L": stacked[..., 0]}[mode])


def laid_out(root: Path, case: Mapping[str, Any]) -> None:
    """Write the pictures, captions and lists of a case."""
    for folder in case.get("folders", ()):
        (root / folder).mkdir(parents=True)
    for name, (width, height, *mode) in case["pictures"].items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        kind = "GIF" if name.endswith(".gif") else None
        drawn((width, height), *(mode or ["RGB"])).save(root / name, kind)
    for name, text in case.get("files", {}).items():
        (root / name).write_text(text.replace("DIR", str(root)), encoding="utf-8")


def loaded(root: Path, config: str, argv: list[str], *, name: str = "d.toml") -> Assembled:
    """Return what a command line of sd-scripts with this dataset_config comes to."""
    (root / name).write_text(config.replace("DIR", str(root)), encoding="utf-8")
    words = ["train_network.py", "--network_module=networks.lora", *argv, f"--dataset_config={root / name}"]
    (root / "run.sh").write_text(shlex.join(words), encoding="utf-8")
    return load_layers(root / "run.sh")


def usable(assembled: Assembled) -> TrainingConfig:
    assert assembled.config is not None, assembled.problems
    return assembled.config


def rows(root: Path, found: list[Example]) -> list[list[object]]:
    """Return the examples as the golden file has them."""
    return sorted(
        [
            example.picture.path.relative_to(root).as_posix(),
            example.repeats,
            example.picture.caption.partition("\n")[0],
            list(example.bucket),
            list(example.placement.resized),
            pytest.approx(example.loss_weight),
            example.regularisation,
        ]
        for example in found
    )  # type: ignore[type-var]


def expected_rows(dataset: Mapping[str, Any], without: set[str]) -> list[list[object]]:
    kept = [row for row in dataset["pictures"] if row[0] not in without]
    return sorted([[row[0], row[1], row[2].partition("\n")[0], *row[3:]] for row in kept])


def compare(root: Path, config: TrainingConfig, result: Mapping[str, Any]) -> DatasetReport:
    """Hold a whole file to its numbers."""
    report = scan(config)
    found = examples(report, config)
    counts = count(report, found, config)
    assert len(datasets_of(config)) == len(result["datasets"])
    for number, dataset in enumerate(result["datasets"]):
        mine = [example for example in found if example.dataset == number]
        assert rows(root, mine) == expected_rows(dataset, set())
        buckets = [bucket for bucket in counts.buckets if bucket.dataset == number]
        assert [[list(each.resolution), each.samples, each.batches] for each in buckets] == [
            row[:3] for row in dataset["buckets"]
        ]
        assert sum(each.batches for each in buckets) == dataset["batches_per_epoch"]
        assert batch_sizes(config)[number] == dataset["batch_size"]
    assert (report.train_count, report.reg_count) == (result["num_train_images"], result["num_reg_images"])
    assert counts.batches == result["batches_per_epoch"]
    for epochs, accumulation, steps in result["steps"]:
        assert timetable(config, counts.batches, accumulation, max_train_epochs=epochs).total_steps == steps
    for steps, accumulation, epochs in result["epochs_for_steps"]:
        assert timetable(config, counts.batches, accumulation, max_train_steps=steps).total_epochs == epochs
    return report


def timetable(config: TrainingConfig, batches: int, accumulation: int, **length: int):
    flat = {**to_flat(config), "max_train_epochs": None, "max_train_steps": None, **length}
    flat["gradient_accumulation_steps"] = accumulation
    return make_timetable(config_from_layers([flat]), micro_batches=batches)


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_means_what_it_means_there(tmp_path: Path, name: str) -> None:
    case = CONFIGS[name]
    laid_out(tmp_path, case)
    config = usable(loaded(tmp_path, case["config"], case.get("argv") or []))
    compare(tmp_path, config, case["result"])


@pytest.mark.parametrize("name", [case["name"] for case in GOLDEN["configs"] if "captions_with_random_seed" in case])
def test_captions_are_those_of_sd_scripts(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CONFIGS[name]
    monkeypatch.chdir(tmp_path)
    laid_out(tmp_path, case)
    text = mended(case["config"]) if name == "empty-missing-duplicate" else case["config"]
    config = usable(loaded(tmp_path, text, case.get("argv") or []))
    found = examples(scan(config), config)
    for number, dataset in enumerate(case["result"]["datasets"]):
        spoken = {
            example.picture.path.relative_to(tmp_path).as_posix(): render(
                example.picture.caption,
                example.treatment.captions,
                rng=random.Random(int(case["captions_with_random_seed"])),
                epoch=1,
                step=0,
                total_steps=100,
            )
            for example in found
            if example.dataset == number
        }
        told = dict(
            reversed(
                [(row[0], text) for row, text in zip(dataset["pictures"], dataset["captions_processed"], strict=True)]
            )
        )
        for name, caption in told.items():  # of a picture that is there several times the first
            if name in spoken and name not in CAPTIONS_OTHERWISE:
                assert spoken[name] == caption, name


CAPTIONS_OTHERWISE = {
    "img/b.png",  # the .caption beside it is read where there is no .txt
    "m/b.png",  # tags without a caption are no empty caption with wildcards on
    "m/long name.png",
}


def test_what_is_inherited(tmp_path: Path) -> None:
    case = CONFIGS["inheritance"]
    laid_out(tmp_path, case)
    found = loaded(tmp_path, case["config"], case["argv"])
    assert "dataset 2, subset 1: custom_attributes note" in " ".join(found.notices)
    config = usable(found)
    compare(tmp_path, config, case["result"])
    for dataset, told in zip(datasets_of(config), case["result"]["datasets"], strict=True):
        for subset, kept in zip(dataset.subsets, told["subsets_kept"], strict=True):
            flat = {**to_flat(subset.config), "class_tokens": subset.class_tokens, "num_repeats": subset.num_repeats}
            wanted = {key: kept[key] for key in kept if key not in ("folder", "pictures", "custom_attributes")}
            attributes = kept.get("custom_attributes", {})
            assert subset.diff_output_preservation == attributes.get("diff_output_preservation", False)
            assert {key: flat[key] for key in wanted} == wanted


def mended(config: str) -> str:
    """Return the file without what vanishes in silence there and is refused here."""
    tables = config.split("  [[datasets.subsets]]\n")
    return "  [[datasets.subsets]]\n".join(
        table for table in tables if not any(f"DIR/{name}" in table for name in ("nothing", "absent", "deep"))
    )


def test_what_vanishes_there_is_refused_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CONFIGS["empty-missing-duplicate"]
    monkeypatch.chdir(tmp_path)
    laid_out(tmp_path, case)
    with pytest.raises(ConfigError) as refused:
        scan(usable(loaded(tmp_path, case["config"], [])))
    messages = [problem.message for problem in refused.value.problems]
    assert [message.partition(":")[0] for message in messages] == [
        f"dataset 1, subset {number}" for number in (1, 2, 3)
    ]
    assert "holds no pictures" in messages[0] and "does not exist" in messages[1] and "sub (1 picture)" in messages[2]
    config = usable(loaded(tmp_path, mended(case["config"]), []))
    report = scan(config)
    told = [(folder.place, folder.repeats, len(folder.pictures)) for folder in report.folders]
    # The folder that is named four times counts once; pictures are known by any case of their ending.
    assert told == [("dataset 1, subset 1", 2, 4), ("dataset 1, subset 6", 1, 5)]
    notices = "\n".join(report.notices)
    for number in (2, 3, 4):
        assert f"dataset 1, subset {number} has the same folder as dataset 1, subset 1" in notices
    assert "dataset 1, subset 5 is left out: its num_repeats is 0." in notices


@pytest.mark.parametrize("name", OTHERWISE)
def test_lists_of_pictures(tmp_path: Path, name: str) -> None:
    case = CONFIGS[name]
    laid_out(tmp_path, case)
    config = usable(loaded(tmp_path, case["config"], []))
    report = scan(config)
    found = examples(report, config)
    for number, dataset in enumerate(case["result"]["datasets"]):
        mine = rows(tmp_path, [example for example in found if example.dataset == number])
        if name == "metadata-jsonl":
            mine = [[str(row[0]).partition("/")[2], *row[1:]] for row in mine]
        if number == 1 and name == "metadata-json":
            # With wildcards tags follow every line, and are there without a caption too.
            here = {"m/x.png": "two;u", "m/b.png": "only, tags"}
            dataset["pictures"] = [[*row[:2], here.get(row[0], row[2]), *row[3:]] for row in dataset["pictures"]]
        assert [row for row in sorted(mine) if row[0] not in OTHERWISE[name]] == expected_rows(dataset, OTHERWISE[name])
    if name == "metadata-json":
        assert {each.picture.size for each in found} == {(512, 384)}, "whatever image_size says"
    else:
        same = [example for example in found if example.picture.path.name == "a.png"]
        assert [(each.picture.caption, each.repeats) for each in same] == [("one a", 2), ("two a,tt", 3)]
        assert report.train_count == case["result"]["num_train_images"] == sum(each.repeats for each in found)


def test_pictures_are_looked_at_whatever_a_cache_of_them_says(tmp_path: Path) -> None:
    """Its `metadata_cache.json` gives the pictures other sizes and captions than they have."""
    case = CONFIGS["cache-info"]
    laid_out(tmp_path, case)
    assembled = loaded(tmp_path, case["config"], case["argv"])
    for dataset in case["result"]["datasets"]:
        captions = {row[0]: "file a" if row[0] == "c/a.png" else "" for row in dataset["pictures"]}
        dataset["pictures"] = [
            [name, repeats, captions[name], bucket, [256, 256], *rest]
            for name, repeats, _, bucket, _, *rest in dataset["pictures"]
        ]
    compare(tmp_path, usable(assembled), case["result"])


def held_out(root: Path, report: DatasetReport) -> list[tuple[int, str, int]]:
    return sorted(
        (folder.dataset, picture.path.relative_to(root).as_posix(), folder.repeats)
        for folder in report.held_out
        for picture in folder.pictures
    )


def test_each_dataset_keeps_pictures_as_it_says(tmp_path: Path) -> None:
    case = CONFIGS["validation"]
    laid_out(tmp_path, case)
    config = usable(loaded(tmp_path, case["config"], []))
    report = scan(config)
    assert held_out(tmp_path, report) == [(0, "v/c.png", 1), (0, "v/f.png", 1)]
    assert [(each.dataset, each.bucket, each.repeats) for each in held_out_examples(report, config)] == [
        (0, (64, 64), 1)
    ] * 2
    assert any(notice.startswith("dataset 2, subset 1: all are trained") for notice in report.notices)
    # What another dataset trains says nothing of pictures that are not trained.
    text = case["config"] + "[[datasets]]\n  [[datasets.subsets]]\n  image_dir = 'DIR/v'\n"
    report = scan(usable(loaded(tmp_path, text, [])))
    assert report.held_out == ()
    assert any(notice.startswith("2 pictures that one dataset keeps") for notice in report.notices)


ONLY_THERE = {
    "resolution-string",
    "alpha-mask-general",
    "no-resolution",
    "metadata-class-tokens",
    "class-tokens-in-metadata-dataset",
    "metadata-no-resolution",
    "jsonl-blank-line",
    "empty-caption-file",
    "validation-split-int",
}
"""Refused there and right here."""

ONLY_HERE = {
    "batch-bool": "batch_size true",
    "bad-interpolation-subset": "resize_interpolation",
    "metadata-empty": "lists no pictures",
    "no-subsets": "has no folders",
    "backslash-path": "single quotes",
    "negative-repeats": "num_repeats -1",
    "validation-everything": "validation_split",
    "validation-too-big": "validation_split",
}
"""Accepted there, and refused here with these words."""


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused_or_odd(tmp_path: Path, name: str) -> None:
    case = REFUSED[name]
    for folder in ("img", "e"):
        (tmp_path / folder).mkdir()
        drawn((64, 64), "RGB").save(tmp_path / folder / "a.png")
    (tmp_path / "e" / "a.caption").touch()
    entry = {"caption": "c"}
    lists = {"m": {str(tmp_path / "img" / "a.png"): entry}, "rel": {"a.png": entry}, "empty": {}}
    for file, content in {**lists, "gone": {str(tmp_path / "img" / "none.png"): entry}}.items():
        (tmp_path / f"{file}.json").write_text(json.dumps(content))
    (tmp_path / "b.jsonl").write_text('{"image_path": "a.png", "caption": "c"}\n\n')
    message = ""
    try:
        config = usable_or_raise(loaded(tmp_path, case["config"], [], name=case.get("config_name", "d.toml")))
        found = examples(scan(config), config)
        assert len(found) == 1
    except (ConfigError, DataError) as error:
        message = str(error)
    if name in ONLY_HERE:
        assert "error" not in case and ONLY_HERE[name] in message
    elif name in ONLY_THERE:
        assert "error" in case and not message
    else:
        assert bool(message) is ("error" in case), message


def usable_or_raise(assembled: Assembled) -> TrainingConfig:
    if assembled.config is None:
        raise ConfigError(assembled.problems)
    return assembled.config


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unknown-general", ["general: batchsize", "did you mean batch_size?"]),
        ("unknown-dataset", ["dataset 1: train_batch_size is called batch_size in a dataset."]),
        ("unknown-subset", ["dataset 1, subset 1: repeats", "did you mean num_repeats?"]),
        ("two-unknown", ["general: foo", "dataset 1: bar"]),
        ("dataset-key-after-subset", ["dataset 1, subset 1: batch_size is said of a dataset; write it above"]),
        ("is-reg-dataset", ["dataset 1: is_reg is said of a single subset"]),
        ("unknown-top", ["batch_size stands by itself; write it under [general]"]),
        ("prior-loss-weight", ["dataset 1: prior_loss_weight is a setting of the whole run"]),
        ("mixed-styles-in-one", ["dataset 1: some subsets have a metadata_file"]),
        ("single-bracket-subset", ["dataset 1: it has no folders; write each as a table [[datasets.subsets]]"]),
        ("single-bracket-dataset", ["it must be a list, [[datasets]]"]),
        (
            "max-below-resolution",
            ["dataset 1: max_bucket_reso 448 is below the resolution 512,512; choose 512 or more."],
        ),
        ("yaml-config", ["a file of datasets ends in .toml or .json"]),
        ("caption-extention", ["dataset 1: caption_extention", "did you mean caption_extension?"]),
        ("batch-float", ["dataset 1: batch_size 2.0 cannot be used: it must be a whole number from 1 to 1024"]),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_the_way_out(tmp_path: Path, name: str, words: list[str]) -> None:
    case = REFUSED[name]
    (tmp_path / "img").mkdir()
    assembled = loaded(tmp_path, case["config"], [], name=case.get("config_name", "d.toml"))
    text = "\n".join(map(str, assembled.problems))
    assert all(word in text for word in words), text


def test_a_file_of_two_datasets_tells_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ss_datasets`, beside the sums of both, of a run that sd-scripts made with the same file."""
    case = GOLDEN["whole_run"]
    monkeypatch.chdir(tmp_path)
    for folder, sizes in case["files"].items():
        for letter, size in zip("abcd", sizes, strict=False):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            drawn(tuple(size), "RGB").save(tmp_path / folder / f"{letter}.png")
            caption = f"{Path(folder).name} {letter}, x, y"
            (tmp_path / folder / f"{letter}.txt").write_text(caption)
    config = usable(loaded(tmp_path, case["config"], ["--train_batch_size=8", "--prior_loss_weight=0.5"]))
    report = scan(config)
    found = examples(report, config)
    counts = count(report, found, config)
    assert counts.batches == int(case["metadata"]["ss_num_batches_per_epoch"])
    assert report.train_count == int(case["metadata"]["ss_num_train_images"])
    entries = datasets_entry(config, report, counts)
    for ours, theirs in zip(entries, case["ss_datasets"], strict=True):
        named = dict(zip(ours["tag_frequency"], theirs["tag_frequency"], strict=True))  # type: ignore[call-overload]
        renamed = {
            **ours,
            "tag_frequency": {named[key]: tags for key, tags in ours["tag_frequency"].items()},  # type: ignore[attr-defined]
            "subsets": [{**each, "image_dir": named[each["image_dir"]]} for each in ours["subsets"]],  # type: ignore[attr-defined]
        }
        expected_info = dict(theirs["bucket_info"])
        error = expected_info.pop("mean_img_ar_error")
        info = dict(renamed.pop("bucket_info"))  # type: ignore[call-overload]
        assert info.pop("mean_img_ar_error") == pytest.approx(error)
        assert info == expected_info
        assert renamed == {key: value for key, value in theirs.items() if key != "bucket_info"}
    assert str(tmp_path) not in json.dumps([entries, settings_without_paths(config)])


def test_transparency_as_a_mask(tmp_path: Path) -> None:
    case = CONFIGS["items-flip-crop-alpha"]
    laid_out(tmp_path, case)
    config = usable(loaded(tmp_path, case["config"], case["argv"]))
    found = {
        example.picture.path.relative_to(tmp_path).as_posix(): example for example in examples(scan(config), config)
    }
    for batch in (batch for draws in case["result"]["items"] for batch in draws):
        if batch["alpha_mask"] is None:
            continue
        for name, flipped, expected in zip(
            batch["keys"], batch["flipped"], batch["alpha_mask"]["at_latent_size"], strict=True
        ):
            example = found[name]
            if expected is None:
                continue
            mask = mask_of(example, example.placement, flipped, (8, 8))
            assert mask.shape == (1, 8, 8)
            # Scaled by another filter, as pictures are: of one that is only cut, every digit is there.
            close = {"atol": 1e-6} if example.placement.resized == example.picture.size else {"atol": 0.35}
            assert torch.allclose(mask[0], torch.tensor(expected), **close)  # type: ignore[arg-type]


def test_masks_in_a_folder_are_cut_as_their_pictures_are(tmp_path: Path) -> None:
    case = CONFIGS["masked-loss"]
    laid_out(tmp_path, case)
    config = usable(loaded(tmp_path, case["config"], case["argv"]))
    by_name = {example.picture.path.name: example for example in examples(scan(config), config)}
    wide = by_name["a.png"]
    mask = mask_of(wide, wide.placement, False, (8, 8))[0]
    # Black up to column 32 of 96; the picture is cut at column 16, so black ends after 2 of 8 columns.
    assert mask[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert torch.equal(mask_of(wide, wide.placement, True, (8, 8))[0], mask.flip(1))
