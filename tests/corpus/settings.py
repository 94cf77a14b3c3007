"""Settings files that cannot be used: malformed TOML, wrong types, numbers out of all proportion."""

from __future__ import annotations

MALFORMED: dict[str, bytes] = {
    "not TOML": b"{'json': true}",
    "no value": b"seed =\n",
    "no key": b"= 1\n",
    "string without end": b'output_name = "cat\n',
    "section without end": b"[dataset\nresolution = 512\n",
    "key twice": b"seed = 1\nseed = 2\n",
    "key in two sections": b"[a]\nseed = 1\n[b]\nseed = 2\n",
    "section twice": b"[training]\nseed = 1\n[training]\nseed = 1\n",
    "backslash": b'train_data_dir = "C:\\pictures\\new"\n',
    "bad escape": b'output_name = "\\uD800"\n',
    "NUL": b"seed = 1\0\n",
    "NUL in a value": b'output_name = "a\\u0000b"\n',
    "other encoding": "output_name = 'né'\n".encode("latin-1"),
    "UTF-16": "seed = 1\n".encode("utf-16"),
    "binary": bytes(range(256)) * 4,
    "deep brackets": b"seed = " + b"[" * 100_000,
    "deep tables": b"a." * 20_000 + b"b = 1\n",
    "table in a section": b"[training.seed]\nvalue = 1\n",
    "list of tables": b"[[training]]\nseed = 1\n",
    "endless digits": b"seed = " + b"9" * 100_000 + b"\n",
    "hexadecimal without end": b"seed = 0x" + b"f" * 100_000 + b"\n",
    "carriage returns": b"seed = 1\rnetwork_dim = 4\r",
}
"""What stands in the file -> none of it may get past the command line."""

WRONG_VALUES: dict[str, tuple[str, ...]] = {
    "learning_rate": ("nan", "inf", "-inf", "-1.0", "1e400", '"fast"', "[1e-4]", "1979-05-27"),
    "network_dim": ("0", "-4", "4.5", "true", "9223372036854775808", '"four"', "[]"),
    "network_alpha": ("nan", "-1", "1e300", "true"),
    "max_train_epochs": ("-1", "1e9", "nan", "99999999999999999999"),
    "train_batch_size": ("0", "1.0e0", "1000000000000", "false"),
    "resolution": ('"0"', '"512,"', '"99999,99999"', "[512, 512, 512]", "nan", "true", '"512;512"', "-512"),
    "seed": ("nan", "0.5", '"x"', "-1"),
    "optimizer_type": ('"SGD; import os"', "1", '""'),
    "optimizer_args": ('["weight_decay"]', "[\"weight_decay=__import__('os')\"]", '["betas=(0.9"]', "1", "[1]"),
    "output_name": ('"../up"', '"a/b"', '"CON"', '""', '"' + "x" * 300 + '"', '"a\\u0001"', "1"),
    "caption_extension": ('"../.txt"', '"a|b"', '".a:b"'),
    "text_encoder_lr": ("nan", "[]", "[1e-4, nan]", '"x"'),
    "lr_warmup_steps": ("-1", "nan", "1e12", "1.5"),
    "mixed_precision": ('"fp8"', "16", "true"),
    "save_state_minutes": ("nan", "-1", "inf"),
    "min_snr_gamma": ("nan", "-5", "inf"),
    "max_data_loader_n_workers": ("-1", "100000"),
    "train_data_dir": ('"a\\u0000b"', "1", "[]", '""'),
    "pretrained_model_name_or_path": ('"a\\u0000b"', "1", '""', '"' + "m" * 5000 + '"'),
    "output_dir": ('"a\\u0000b"', '"a\\nb"', "1", '"' + "o" * 5000 + '"'),
    "network_weights": ('"a\\u0000b.safetensors"', '"gone.safetensors"', '"/dev/zero"'),
    "sample_prompts": ('"gone.txt"', '"a\\u0000b.txt"', '"a cat --ss teleport"', "1"),
    "logging_dir": ("1",),
    "no_such_setting": ("1",),
}
"""Key -> TOML values none of which that setting can have."""
