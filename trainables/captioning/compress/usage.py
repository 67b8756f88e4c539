"""How an artefact is used, as Python lines that run in its folder: with this package, and without it.

For the model card; `tests/test_model_card.py` runs them.
"""

WITH_CAPTUNE = """from pathlib import Path

from trainables.captioning.compress.artefact import load_artefact

print(*load_artefact(Path(".")).caption(["photo.jpg"]))
"""

WITH_ONNX_RUNTIME = """import numpy as np
from onnxruntime import InferenceSession
from PIL import Image, ImageOps
from tokenizers import Tokenizer


def run(session, inputs):
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs)))


encoder, step = InferenceSession("encoder.onnx"), InferenceSession("decoder_step.onnx")
facts = {name: int(value) for name, value in step.get_modelmeta().custom_metadata_map.items()}
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGBA")
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
image = ImageOps.fit(image.convert("RGB"), (facts["image_size"], facts["image_size"]))

state = run(encoder, {"images": np.asarray(image)[np.newaxis]})
token, caption = facts["bos"], []
while len(caption) < facts["max_tokens"]:
    answers = run(step, {"token": np.array([token]), **state})
    logits = answers.pop("logits")[0]
    logits[[facts["pad"], facts["bos"], facts["unk"]]] = -np.inf  # never written
    token = int(logits.argmax())
    if token == facts["eos"]:
        break
    caption.append(token)
    state |= {name.removeprefix("next_"): value for name, value in answers.items()}
print(Tokenizer.from_file("tokenizer.json").decode(caption))
"""
