"""How the embedded emoji model is made: data, captions, networks, training. Used by train_emoji.py and eval_emoji.py; not part of the package."""
