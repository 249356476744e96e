"""The same rotation in other libraries' words: their names, arguments and shapes.

Each module is a thin adapter over the core. Where an original is wrong, ours is right,
and its docstring says in what the two differ. Nothing is imported here: name the
module that you need, as in ``from rope_teach.dialects import hugging_face``.

======================== ============================ ==================================
module                   whose                        what it covers
======================== ============================ ==================================
zeta                     kyegomez/zeta                angles and xPos scale, how to
                                                      apply them, and XPOS
rotary_embedding_torch   lucidrains                   the module and its functions:
                                                      language, pixels, learned, axial
pmx                      OpenPPL                      the operator: offset, padding,
                                                      float32, float16, int8
onnx                     the ONNX standard            the operator of opset 23, and how
                                                      a model exports to it
hugging_face             transformers                 rotation, configurations, swap
                                                      into a model, checkpoints
gguf                     llama.cpp                    the order of q and k in a file
======================== ============================ ==================================

Lesson 20.
"""
