#include "check.h"

#include <stdio.h>
#include <string.h>

#include "arena.h"
#include "clock.h"
#include "json.h"
#include "source.h"

#define NS_PER_MS UINT64_C(1000000)
/* The first runs find out how the threads serve best (trial.h). */
#define RUNS_MIN 5u
#define RUNS_MAX 31u
#define RUNS_NS (UINT64_C(2) * 1000 * NS_PER_MS)

struct golden {
  eb_model *model;
  uint32_t input_count;
  uint32_t count;
  struct eb_source *source; /* of each input, then of each output */
  uint8_t *expected;        /* room for the largest output */
  struct eb_arena memory;
};

static const struct eb_tensor *tensor_at(const struct golden *golden, uint32_t index) {
  if (index < golden->input_count) return eb_input(golden->model, index);
  return eb_output(golden->model, index - golden->input_count);
}

static eb_status open_memory(struct golden *golden, eb_error *error) {
  size_t largest = 0;
  for (uint32_t i = golden->input_count; i < golden->count; i++) {
    size_t bytes = tensor_at(golden, i)->bytes;
    if (bytes > largest) largest = bytes;
  }
  size_t sources = golden->count * sizeof *golden->source;
  eb_status status = eb_arena_open(&golden->memory, eb_align_up(sources) + eb_align_up(largest), error);
  if (status) return status;
  golden->source = eb_arena_take(&golden->memory, sources);
  golden->expected = eb_arena_take(&golden->memory, largest);
  return EB_OK;
}

static eb_status open_sources(struct golden *golden, eb_error *error) {
  for (uint32_t i = 0; i < golden->count; i++) {
    bool input = i < golden->input_count;
    char path[32];
    snprintf(path, sizeof path, "golden/%s-%u.npy", input ? "in" : "out", input ? i : i - golden->input_count);
    struct eb_stream stream = eb_stream_of_bytes("a golden array", eb_file(golden->model, path));
    eb_status status = eb_source_open(&golden->source[i], stream, EB_FORMAT_NPY, tensor_at(golden, i), NULL, error);
    if (status) return status;
  }
  return EB_OK;
}

static eb_status read_sample(struct golden *golden, uint32_t index, void *data, bool *end, eb_error *error) {
  bool ended;
  eb_status status = eb_source_next(&golden->source[index], data, &ended, error);
  if (status) return status;
  if (index > 0 && ended != *end) {
    return eb_fail(error, EB_REFUSED, "compile the recipe again", "the golden arrays have different lengths");
  }
  *end = ended;
  return EB_OK;
}

static eb_status compare(const struct golden *golden, const struct eb_tensor *output, uint64_t sample,
                         eb_error *error) {
  if (memcmp(output->data, golden->expected, output->bytes) == 0) return EB_OK;
  size_t size = eb_dtype_size(output->dtype), element = 0;
  while (memcmp((uint8_t *)output->data + element * size, golden->expected + element * size, size) == 0) element++;
  char expected[32], found[32];
  eb_json_element(output, golden->expected, element, expected);
  eb_json_element(output, output->data, element, found);
  return eb_fail(error, EB_CHECK, "this machine or this build computes something else than the reference; report it",
                 "output %s differs in golden sample %llu at element %zu: expected %s, found %s", output->name,
                 (unsigned long long)sample, element, expected, found);
}

/* One sample: inputs, run, outputs. */
static eb_status check_sample(struct golden *golden, uint64_t sample, bool *end, eb_error *error) {
  for (uint32_t i = 0; i < golden->input_count; i++) {
    eb_status status = read_sample(golden, i, eb_input(golden->model, i)->data, end, error);
    if (status) return status;
  }
  if (!*end) eb_run(golden->model);
  for (uint32_t i = golden->input_count; i < golden->count; i++) {
    eb_status status = read_sample(golden, i, golden->expected, end, error);
    if (!status && !*end) status = compare(golden, tensor_at(golden, i), sample, error);
    if (status) return status;
  }
  return EB_OK;
}

eb_status eb_check(eb_model *model, uint64_t *samples, eb_error *error) {
  struct golden golden = {.model = model, .input_count = eb_input_count(model)};
  golden.count = golden.input_count + eb_output_count(model);
  *samples = 0;
  eb_status status = open_memory(&golden, error);
  if (status) return status;
  status = open_sources(&golden, error);
  bool end = golden.count == 0;
  while (!status && !end) {
    status = check_sample(&golden, *samples, &end, error);
    if (!status && !end) ++*samples;
  }
  if (!status && *samples == 0) {
    status = eb_fail(error, EB_REFUSED, "compile the recipe again", "the bundle has no golden samples");
  }
  eb_arena_close(&golden.memory);
  return status;
}

static void insert(uint64_t *sorted, uint32_t count, uint64_t value) {
  for (; count && sorted[count - 1] > value; count--) sorted[count] = sorted[count - 1];
  sorted[count] = value;
}

eb_status eb_check_latency(eb_model *model, eb_error *error) {
  uint64_t times[RUNS_MAX], begin = eb_clock_ns(), limit = eb_model_info(model)->timeout_ms * NS_PER_MS;
  uint32_t runs = 0;
  while (limit && runs < RUNS_MAX && (runs < RUNS_MIN || eb_clock_ns() - begin < RUNS_NS)) {
    uint64_t start = eb_clock_ns();
    eb_run(model);
    insert(times, runs++, eb_clock_ns() - start);
  }
  if (!limit || times[runs / 2] <= limit) return EB_OK;
  return eb_fail(error, EB_CHECK,
                 "this device is too slow or too busy for the release; raise timeout_ms, or compile a smaller model",
                 "the median latency is %.1f ms, over the manifest's timeout-ms %u",
                 (double)times[runs / 2] / (double)NS_PER_MS, eb_model_info(model)->timeout_ms);
}
