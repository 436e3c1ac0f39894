#include "plan.h"

#include <string.h>

#include "arena.h"
#include "reader.h"

#define HEADER_BYTES 64u
#define TENSOR_BYTES 48u
#define OP_BYTES 40u
#define INDEX_BYTES 4u
#define ARG_WRITTEN 0x80000000u
#define FLAGS_KNOWN 1u

static const char remake[] = "the compiler and this runtime disagree; compile the recipe again";

static eb_status bad(eb_error *error, const char *what) {
  return eb_fail(error, EB_REFUSED, remake, "plan.bin: %s", what);
}

static eb_status bad_item(eb_error *error, const char *item, uint32_t index, const char *what) {
  return eb_fail(error, EB_REFUSED, remake, "plan.bin: %s %u: %s", item, index, what);
}

static uint32_t index_at(const struct eb_plan *plan, size_t section, uint32_t index) {
  struct eb_reader reader = eb_reader_of(plan->data + section + (size_t)index * INDEX_BYTES, INDEX_BYTES);
  return eb_read_u32(&reader);
}

uint32_t eb_plan_arg(const struct eb_plan *plan, uint32_t index) {
  return index_at(plan, plan->args, index) & ~ARG_WRITTEN;
}

uint32_t eb_plan_input(const struct eb_plan *plan, uint32_t index) {
  return index_at(plan, plan->inputs, index);
}

uint32_t eb_plan_output(const struct eb_plan *plan, uint32_t index) {
  return index_at(plan, plan->outputs, index);
}

const char *eb_plan_string(const struct eb_plan *plan, uint32_t offset) {
  return (const char *)plan->data + plan->strings + offset;
}

struct eb_plan_tensor eb_plan_tensor(const struct eb_plan *plan, uint32_t index) {
  struct eb_reader r = eb_reader_of(plan->data + HEADER_BYTES + (size_t)index * TENSOR_BYTES, TENSOR_BYTES);
  struct eb_plan_tensor tensor = {.name = eb_read_u32(&r)};
  tensor.dtype = (eb_dtype)eb_read_u8(&r);
  tensor.rank = eb_read_u8(&r);
  tensor.in_weights = eb_read_u8(&r) == 1;
  eb_read_u8(&r);
  for (unsigned i = 0; i < EB_RANK_MAX; i++) tensor.dim[i] = eb_read_u32(&r);
  tensor.offset = eb_read_u64(&r);
  tensor.bytes = eb_read_u64(&r);
  return tensor;
}

struct eb_plan_op eb_plan_op(const struct eb_plan *plan, uint32_t index) {
  struct eb_reader r = eb_reader_of(plan->data + plan->ops + (size_t)index * OP_BYTES, OP_BYTES);
  struct eb_plan_op op = {.name = eb_read_u32(&r)};
  op.kind = eb_read_u32(&r);
  op.kernel = eb_read_u32(&r);
  op.first_arg = eb_read_u32(&r);
  op.arg_count = eb_read_u32(&r);
  op.work = eb_read_u32(&r);
  op.grain = eb_read_u32(&r);
  op.flags = eb_read_u32(&r);
  op.macs = eb_read_u64(&r);
  return op;
}

static eb_status read_header(struct eb_plan *plan, eb_bytes data, uint64_t weights_size, eb_error *error) {
  struct eb_reader r = eb_reader_of(data.data, data.size);
  const uint8_t *magic = eb_read_bytes(&r, 4);
  if (!magic || memcmp(magic, "EBPL", 4) != 0) return bad(error, "not a plan");
  uint32_t version = eb_read_u32(&r);
  *plan = (struct eb_plan){.data = data.data, .arena_bytes = eb_read_u32(&r)};
  plan->scratch_bytes = eb_read_u32(&r);
  plan->tensor_count = eb_read_u32(&r);
  plan->op_count = eb_read_u32(&r);
  plan->arg_count = eb_read_u32(&r);
  plan->input_count = eb_read_u32(&r);
  plan->output_count = eb_read_u32(&r);
  plan->string_bytes = eb_read_u32(&r);
  plan->weights_bytes = eb_read_u64(&r);
  eb_read_bytes(&r, 16);
  if (r.failed) return bad(error, "cut off");
  if (version != 1) {
    return eb_fail(error, EB_UNSUPPORTED, "install the edgebuild-run that belongs to the bundle",
                   "plan.bin has version %u; this runtime reads version 1", version);
  }
  if (plan->arena_bytes % EB_ALIGN || plan->scratch_bytes % EB_ALIGN || plan->weights_bytes % EB_ALIGN) {
    return bad(error, "a size in the header is no multiple of 64");
  }
  return plan->weights_bytes == weights_size ? EB_OK : bad(error, "weights_bytes is not the size of weights.bin");
}

/* The sections follow each other and fill the file; 64 bits cannot overflow here. */
static eb_status place_sections(struct eb_plan *plan, size_t size, eb_error *error) {
  uint64_t at = HEADER_BYTES + (uint64_t)plan->tensor_count * TENSOR_BYTES;
  plan->ops = at;
  plan->args = at += (uint64_t)plan->op_count * OP_BYTES;
  plan->inputs = at += (uint64_t)plan->arg_count * INDEX_BYTES;
  plan->outputs = at += (uint64_t)plan->input_count * INDEX_BYTES;
  plan->strings = at += (uint64_t)plan->output_count * INDEX_BYTES;
  at += plan->string_bytes;
  return at == size ? EB_OK : bad(error, "the sections do not fill the file");
}

/* Length of the UTF-8 sequence at `s` (Unicode 15, table 3-7), 0 when malformed; a NUL behind the text ends every
 * check. */
static size_t utf8_length(const uint8_t *s) {
  if (s[0] < 0x80) return 1;
  size_t length = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
  if (s[0] < 0xc2 || s[0] > 0xf4) return 0;
  for (size_t i = 1; i < length; i++) {
    if ((s[i] & 0xc0) != 0x80) return 0;
  }
  bool overlong = (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xf0 && s[1] < 0x90);
  bool no_scalar = (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf4 && s[1] > 0x8f);
  return overlong || no_scalar ? 0 : length;
}

static eb_status check_strings(const struct eb_plan *plan, eb_error *error) {
  const uint8_t *text = plan->data + plan->strings;
  if (plan->string_bytes == 0 || text[plan->string_bytes - 1] != 0)
    return bad(error, "the strings do not end with NUL");
  for (size_t i = 0; i < plan->string_bytes;) {
    size_t length = utf8_length(text + i);
    if (length == 0) return bad(error, "a string is not UTF-8");
    i += length;
  }
  return EB_OK;
}

/* Product of the dimensions times the size of an element; false when it overflows or unused dimensions are set. */
static bool tensor_bytes(const struct eb_plan_tensor *tensor, uint64_t *bytes) {
  *bytes = eb_dtype_size(tensor->dtype);
  for (uint32_t i = 0; i < EB_RANK_MAX; i++) {
    if (i >= tensor->rank && tensor->dim[i]) return false;
    if (i < tensor->rank && __builtin_mul_overflow(*bytes, (uint64_t)tensor->dim[i], bytes)) return false;
  }
  return true;
}

static eb_status check_tensors(const struct eb_plan *plan, eb_error *error) {
  for (uint32_t i = 0; i < plan->tensor_count; i++) {
    const uint8_t *raw = plan->data + HEADER_BYTES + (size_t)i * TENSOR_BYTES;
    struct eb_plan_tensor t = eb_plan_tensor(plan, i);
    if (t.name >= plan->string_bytes) return bad_item(error, "tensor", i, "its name lies outside the strings");
    if (raw[4] > EB_I16) return bad_item(error, "tensor", i, "unknown dtype");
    if (t.rank > EB_RANK_MAX) return bad_item(error, "tensor", i, "its rank is over 6");
    if (raw[6] > 1 || raw[7] != 0) return bad_item(error, "tensor", i, "unknown space");
    uint64_t bytes, limit = t.in_weights ? plan->weights_bytes : plan->arena_bytes;
    if (!tensor_bytes(&t, &bytes) || bytes != t.bytes)
      return bad_item(error, "tensor", i, "its size is not its shape's");
    if (t.offset % EB_ALIGN) return bad_item(error, "tensor", i, "its offset is no multiple of 64");
    if (t.offset > limit || t.bytes > limit - t.offset)
      return bad_item(error, "tensor", i, "it lies outside its memory");
  }
  return EB_OK;
}

static eb_status check_ops(const struct eb_plan *plan, eb_error *error) {
  for (uint32_t i = 0; i < plan->op_count; i++) {
    struct eb_plan_op op = eb_plan_op(plan, i);
    if (op.name >= plan->string_bytes || op.kind >= plan->string_bytes) {
      return bad_item(error, "operator", i, "its name lies outside the strings");
    }
    if (op.arg_count < 1 || op.arg_count > EB_ARGS_MAX) return bad_item(error, "operator", i, "not 1 to 16 arguments");
    if (op.first_arg > plan->arg_count || op.arg_count > plan->arg_count - op.first_arg) {
      return bad_item(error, "operator", i, "its arguments lie outside the table");
    }
    if (op.work < 1 || op.work > INT32_MAX) return bad_item(error, "operator", i, "its work is out of range");
    if (op.grain < 1 || op.grain > op.work) return bad_item(error, "operator", i, "its grain is out of range");
    if (op.flags & ~FLAGS_KNOWN) return bad_item(error, "operator", i, "unknown flags");
  }
  return EB_OK;
}

static eb_status check_args(const struct eb_plan *plan, eb_error *error) {
  for (uint32_t i = 0; i < plan->arg_count; i++) {
    uint32_t tensor = eb_plan_arg(plan, i);
    bool written = index_at(plan, plan->args, i) & ARG_WRITTEN;
    if (tensor >= plan->tensor_count) return bad_item(error, "argument", i, "there is no such tensor");
    if (written && eb_plan_tensor(plan, tensor).in_weights)
      return bad_item(error, "argument", i, "weights are written");
  }
  return EB_OK;
}

static bool overlap(const struct eb_plan_tensor *a, const struct eb_plan_tensor *b) {
  return !a->in_weights && !b->in_weights && a->bytes && b->bytes && a->offset < b->offset + b->bytes &&
         b->offset < a->offset + a->bytes;
}

/* An input or output lies in the arena and shares its memory with no other tensor. */
static eb_status check_port(const struct eb_plan *plan, const char *side, uint32_t i, uint32_t index, eb_error *error) {
  if (index >= plan->tensor_count) return bad_item(error, side, i, "there is no such tensor");
  struct eb_plan_tensor tensor = eb_plan_tensor(plan, index);
  if (tensor.in_weights) return bad_item(error, side, i, "it does not lie in the arena");
  for (uint32_t other = 0; other < plan->tensor_count; other++) {
    struct eb_plan_tensor t = eb_plan_tensor(plan, other);
    if (other != index && overlap(&tensor, &t)) return bad_item(error, side, i, "it overlaps another tensor");
  }
  return EB_OK;
}

static eb_status check_ports(const struct eb_plan *plan, eb_error *error) {
  eb_status status = EB_OK;
  for (uint32_t i = 0; !status && i < plan->input_count; i++) {
    status = check_port(plan, "input", i, eb_plan_input(plan, i), error);
    for (uint32_t other = 0; !status && other < i; other++) {
      if (eb_plan_input(plan, other) == eb_plan_input(plan, i)) status = bad_item(error, "input", i, "it occurs twice");
    }
  }
  for (uint32_t i = 0; !status && i < plan->output_count; i++) {
    status = check_port(plan, "output", i, eb_plan_output(plan, i), error);
  }
  return status;
}

eb_status eb_plan_open(struct eb_plan *plan, eb_bytes data, uint64_t weights_size, eb_error *error) {
  eb_status status = read_header(plan, data, weights_size, error);
  if (!status) status = place_sections(plan, data.size, error);
  if (!status) status = check_strings(plan, error);
  if (!status) status = check_tensors(plan, error);
  if (!status) status = check_ops(plan, error);
  if (!status) status = check_args(plan, error);
  if (!status) status = check_ports(plan, error);
  return status;
}
