"""The pages of the API: what is promised, by what people do with it.

mkdocstrings fills in signatures and docstrings.
"""

PAGES = {
    "schemes": (
        "Schemes",
        "A scheme is an encoding with its extensions, `rope+yarn:factor=8`. It is a module of PyTorch.",
        {
            "pezoo.create": "pezoo.compose.create",
            "pezoo.attend": "pezoo.compose.attend.attend_with",
            "pezoo.parse": "pezoo.scheme.parse",
            "pezoo.Scheme": "pezoo.compose.Scheme",
            "pezoo.Positions": "pezoo.positions.Positions",
            "pezoo.Undefined": "pezoo.contract.Undefined",
            "pezoo.UserError": "pezoo.errors.UserError",
        },
    ),
    "zoo": (
        "The zoo",
        "Names, facts and settings of all members.",
        {
            "pezoo.list_encodings": "pezoo.registry.list_encodings",
            "pezoo.list_extensions": "pezoo.registry.list_extensions",
            "pezoo.list_schedules": "pezoo.registry.list_schedules",
            "pezoo.list_tasks": "pezoo.registry.list_tasks",
            "pezoo.describe": "pezoo.registry.describe",
            "pezoo.register": "pezoo.registry.register",
            "pezoo.setting": "pezoo.registry.setting",
            "pezoo.load_plugin": "pezoo.registry.load_plugin",
        },
    ),
    "members": (
        "Your own members",
        "What encodings, extensions, layer schedules and tasks are made from. Each hook does nothing by default.",
        {
            "pezoo.Encoding": "pezoo.contract.Encoding",
            "pezoo.Extension": "pezoo.contract.Extension",
            "pezoo.Schedule": "pezoo.contract.Schedule",
            "pezoo.Traits": "pezoo.contract.Traits",
            "pezoo.Shape": "pezoo.contract.Shape",
            "pezoo.Branch": "pezoo.contract.Branch",
            "pezoo.Task": "pezoo.task.Task",
            "pezoo.Pairs": "pezoo.task.Pairs",
            "pezoo.IGNORE": "pezoo.task.IGNORE",
            "pezoo.testing.check_encoding": "pezoo.testing.check_encoding",
            "pezoo.testing.check_task": "pezoo.testing.check_task",
            "pezoo.testing.parametrize": "pezoo.testing.parametrize",
        },
    ),
    "studies": (
        "Studies",
        "What `pezoo run` and `pezoo report` do, from Python.",
        {
            "pezoo.run": "pezoo.cli.run.run",
            "pezoo.load": "pezoo.report.finished.load",
            "Finished": "pezoo.report.finished.Finished",
            "Result": "pezoo.results.Result",
        },
    ),
    "models": (
        "Models",
        "The shared Transformer, and trained models of the library transformers.",
        {
            "pezoo.Transformer": "pezoo.model.transformer.Transformer",
            "pezoo.TransformerConfig": "pezoo.model.config.TransformerConfig",
            "pezoo.attach": "pezoo.pretrained.attach.attach",
            "pezoo.detach": "pezoo.pretrained.attach.detach",
            "Attached": "pezoo.pretrained.attach.Attached",
            "pezoo.export": "pezoo.pretrained.export.export",
            "pezoo.from_pretrained": "pezoo.pretrained.from_pretrained.from_pretrained",
        },
    ),
}
"""By page: its title, a sentence, and by the promised name where that is defined."""


def pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    return {name: _page(*facts) for name, facts in PAGES.items()}


def _page(title: str, about: str, names: dict[str, str]) -> str:
    lines = [f"# {title}", "", about]
    for shown, home in names.items():
        lines += ["", f"::: {home}", "    options:", f"      heading: {shown}", f"      toc_label: {shown}"]
    return "\n".join(lines) + "\n"
