"""The whole chain on a pretrained model, with controls: `python -m launch.real --lang ne`."""
