"""What tests of all trainings need: recipes that differ in a field or two, and runs that are interrupted."""

import copy

import yaml

from probpose.training.loop import TrainingLoop


def write_recipe(path, content, changes=None):
    """Write `content` with `{"section.field": value}` changed; fields set to `...` are left out. Returns the path."""
    content = copy.deepcopy(content)
    for name, value in (changes or {}).items():
        *sections, field = name.split(".")
        section = content
        for key in sections:
            section = section.setdefault(key, {})
        section[field] = value
        if value is ...:
            del section[field]
    path.write_text(yaml.safe_dump(content))
    return path


def interrupt_at(monkeypatch, step):
    """Ctrl-C while the batch of this step is worked on."""
    optimise = TrainingLoop._optimise

    def interrupted(self, batch):
        if self.step == step:
            raise KeyboardInterrupt
        return optimise(self, batch)

    monkeypatch.setattr(TrainingLoop, "_optimise", interrupted)
