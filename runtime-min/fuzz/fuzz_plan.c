/* Any bytes as plan.bin; an accepted plan is read as the engine reads it, and must keep its promises. */
#include <stdlib.h>
#include <string.h>

#include "plan.h"
#include "reader.h"

static void require(bool holds) {
  if (!holds) abort();
}

static void read_tensors(const struct eb_plan *plan) {
  for (uint32_t i = 0; i < plan->tensor_count; i++) {
    struct eb_plan_tensor tensor = eb_plan_tensor(plan, i);
    uint64_t limit = tensor.in_weights ? plan->weights_bytes : plan->arena_bytes;
    require(tensor.offset + tensor.bytes <= limit && tensor.offset + tensor.bytes >= tensor.offset);
    require(strlen(eb_plan_string(plan, tensor.name)) < plan->string_bytes);
  }
}

static void read_ops(const struct eb_plan *plan) {
  for (uint32_t i = 0; i < plan->op_count; i++) {
    struct eb_plan_op op = eb_plan_op(plan, i);
    require(op.grain >= 1 && op.grain <= op.work && op.arg_count <= EB_ARGS_MAX);
    for (uint32_t a = 0; a < op.arg_count; a++) require(eb_plan_arg(plan, op.first_arg + a) < plan->tensor_count);
    require(strlen(eb_plan_string(plan, op.kind)) < plan->string_bytes);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct eb_plan plan;
  eb_error error;
  /* Whatever size of weights.bin the plan asks for. */
  struct eb_reader reader = eb_reader_of(data, size);
  eb_read_bytes(&reader, 40);
  if (eb_plan_open(&plan, (eb_bytes){data, size}, eb_read_u64(&reader), &error)) return 0;
  read_tensors(&plan);
  read_ops(&plan);
  for (uint32_t i = 0; i < plan.input_count; i++) require(eb_plan_input(&plan, i) < plan.tensor_count);
  for (uint32_t i = 0; i < plan.output_count; i++) require(eb_plan_output(&plan, i) < plan.tensor_count);
  return 0;
}
