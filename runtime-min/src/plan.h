/* plan.bin (SPEC 5): checked once as a whole, then read in place. */
#ifndef EB_PLAN_H
#define EB_PLAN_H

#include "status.h"

#define EB_ARGS_MAX 16u

/* Offsets of the sections inside `data`; eb_plan_open has checked every value behind them. */
struct eb_plan {
  const uint8_t *data;
  uint32_t arena_bytes;
  uint32_t scratch_bytes;
  uint32_t tensor_count;
  uint32_t op_count;
  uint32_t arg_count;
  uint32_t input_count;
  uint32_t output_count;
  uint64_t weights_bytes;
  size_t ops;
  size_t args;
  size_t inputs;
  size_t outputs;
  size_t strings;
  size_t string_bytes;
};

struct eb_plan_tensor {
  uint32_t name;
  eb_dtype dtype;
  uint32_t rank;
  bool in_weights;
  uint32_t dim[EB_RANK_MAX];
  uint64_t offset;
  uint64_t bytes;
};

struct eb_plan_op {
  uint32_t name;
  uint32_t kind;
  uint32_t kernel;
  uint32_t first_arg;
  uint32_t arg_count;
  uint32_t work;
  uint32_t grain;
  uint32_t flags;
  uint64_t macs;
};

/* Checks everything that SPEC 5 says, except `kernel` against program.so's table. `data` must outlive the plan. */
eb_status eb_plan_open(struct eb_plan *plan, eb_bytes data, uint64_t weights_size, eb_error *error);

struct eb_plan_tensor eb_plan_tensor(const struct eb_plan *plan, uint32_t index);
struct eb_plan_op eb_plan_op(const struct eb_plan *plan, uint32_t index);

/* Tensor of an argument, an input or an output. */
uint32_t eb_plan_arg(const struct eb_plan *plan, uint32_t index);
uint32_t eb_plan_input(const struct eb_plan *plan, uint32_t index);
uint32_t eb_plan_output(const struct eb_plan *plan, uint32_t index);

const char *eb_plan_string(const struct eb_plan *plan, uint32_t offset);

#endif
