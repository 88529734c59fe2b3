"""`transfer validate`: everything a recipe reads, checked before anything is spent."""

import argparse
import logging
import os

from launch.commands.arguments import OUT, OVERRIDES, STUDY, command, print_result, read_study


@command("open and render everything a recipe reads, before it costs anything", STUDY, OVERRIDES, OUT)
def validate(options: argparse.Namespace) -> int:
    """Open every source and benchmark on this machine, apply the corpus filters, and show one problem, one
    demonstration and one question of every benchmark and prompting as the model will see them, with token lengths
    against the limits. Nothing is trained, generated or downloaded. Exit status 2, with one sentence for each mistake,
    if there are any. Data that `transfer fetch` has still to download is reported as missing but is no mistake.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # a missing file must not become a download
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = os.environ["TQDM_DISABLE"] = "1"
    from launch.planning.validation import validate
    from launch.planning.validation_text import as_json, format_validation

    recipe, study_dir = read_study(options)
    logging.disable(logging.WARNING)  # warnings of libraries are not findings
    try:
        validation = validate(recipe, study_dir)
    finally:
        logging.disable(logging.NOTSET)
    print_result(options, as_json(validation), format_validation(validation))
    return 2 if validation.mistakes else 0
