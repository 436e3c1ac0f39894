"""The judge: SPEC sections 7 to 9 in NumPy. It shares no code with the quantizer or the lowering."""

from edgebuild.reference.interpreter import Foreign, Interpreter

__all__ = ["Foreign", "Interpreter"]
