"""The ONNX operators that a program can hold, known without importing a compiler.

`OPERATORS` have kernels of ours; a test holds the list against the lowering's own tables. `THROUGH_TVM` are lowered by
TVM, in float32 and without tuned kernels; a test runs ONNX's own cases for each of them.
"""

OPERATORS = frozenset({
    "Abs", "Add", "And", "ArgMax", "AveragePool", "Cast", "Ceil", "Celu", "Clip", "Concat", "Conv", "DepthToSpace",
    "DequantizeLinear", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "Gelu",
    "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity",
    "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool", "Min",
    "Mish", "Mul", "Neg", "Not", "Or", "PRelu", "Pad", "Pow", "QuantizeLinear", "Reciprocal", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize", "Round", "Selu", "Sigmoid", "Slice", "Softmax",
    "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tanh",
    "ThresholdedRelu", "Tile", "TopK", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip

THROUGH_TVM = frozenset({
    "Acos", "Acosh", "AffineGrid", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "BatchNormalization", "BitwiseAnd",
    "BitwiseNot", "BitwiseOr", "BitwiseXor", "ConvTranspose", "Cos", "Cosh", "Einsum", "GatherElements", "GatherND",
    "GridSample", "GroupNormalization", "Hardmax", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LpPool",
    "Mean", "Mod", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSumSquare",
    "RoiAlign", "ScatterElements", "ScatterND", "Shrink", "Sign", "Sin", "Sinh", "Tan", "Trilu", "Xor",
})  # fmt: skip
