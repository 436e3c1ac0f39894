"""Integer and float32 kernels written in TVM's TIR, one module per kind of loop; `isa` says what a CPU can do."""
