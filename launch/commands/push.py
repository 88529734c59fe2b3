"""`transfer push`: a trained model to the Hugging Face hub."""

import argparse

from launch.commands.arguments import STUDY, argument, command, print_result, refuse_rehearsal, study_folder


@command(
    "upload a trained model to the Hugging Face hub",
    STUDY,
    argument("arm", metavar="ARM", help="the arm, for instance grpo"),
    argument("--to", metavar="OWNER/NAME", required=True, help="the repository; it is made if there is none"),
    argument("--seed", type=int, metavar="N", help="the training seed (default: the first of the study)"),
    argument("--step", type=int, metavar="N", help="a checkpoint, as `transfer pick` names it (default: the last)"),
    argument("--licence", metavar="ID", help="licence of the model as the hub calls it, for instance apache-2.0"),
    argument("--public", action="store_true", help="make a new repository public (default: private)"),
    argument("--dry-run", action="store_true", help="print the card and the files, upload nothing"),
)
def push(options: argparse.Namespace) -> int:
    """Upload a final model, or a checkpoint, of a finished study with a model card made from its recipe and report.
    Needs a token with write access: HF_TOKEN, or `hf auth login`.
    """
    from eval.report.model_card import PushedModel
    from launch.push import prepare_upload, require_owner
    from launch.push import push as upload_to_hub
    from recipes.loading import load_study

    require_owner(options.to)
    study_dir = study_folder(options.study)
    recipe = load_study(study_dir)
    refuse_rehearsal(recipe.rehearsal, study_dir)
    seed = recipe.seeds[0] if options.seed is None else options.seed
    upload = prepare_upload(recipe, study_dir, PushedModel(options.arm, seed, options.step), options.licence)
    sizes = {name: (upload.directory / name).stat().st_size for name in upload.files}
    values = {"to": options.to, "directory": str(upload.directory), "files": sizes, "card": upload.card}
    if options.dry_run:
        listed = "\n".join(f"{size:>16,} bytes  {name}" for name, size in sizes.items())
        print_result(options, values, f"{upload.card}\n{listed}\nnothing was uploaded to {options.to} (--dry-run)")
        return 0
    address = upload_to_hub(upload, options.to, private=not options.public)
    print_result(options, values | {"address": address}, f"uploaded {upload.size:,} bytes and the card to {address}")
    return 0
