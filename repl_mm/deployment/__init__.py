"""Off the training machine: a model as an ONNX file or as an exported program, and a file as a model's network.

``network.py`` says which part of a model leaves it, ``writing.py`` writes it, ``serving.py`` runs it in the model's
place, so that decoding, NMS and metrics stay those of the config; ``end_to_end.py`` takes them along, and
``quantization.py`` makes integers of it. Needs ``repl_mm[export]``: onnx, onnxruntime, onnxscript.
"""

from .network import Network, find_network
from .quantization import quantize
from .serving import ServedFile, open_file, serve
from .writing import ExportError, export

__all__ = ['ExportError', 'Network', 'ServedFile', 'export', 'find_network', 'open_file', 'quantize', 'serve']
