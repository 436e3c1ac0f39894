#include "runner.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"

#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S UINT64_C(1000000000)

static eb_status open_memory(struct eb_runner *runner, eb_error *error) {
  uint32_t inputs = eb_input_count(runner->model);
  size_t ops = eb_op_count(runner->model) * sizeof *runner->op_ns;
  size_t size =
      eb_align_up(inputs * sizeof *runner->source) + 2 * eb_align_up(ops) + 2 * eb_align_up(sizeof *runner->all);
  for (uint32_t i = 0; i < inputs; i++) {
    size += eb_align_up(EB_STREAM_BUFFER) + eb_align_up(eb_source_memory(eb_input(runner->model, i)));
  }
  eb_status status = eb_arena_open(&runner->memory, size, error);
  if (status) return status;
  runner->source = eb_arena_take(&runner->memory, inputs * sizeof *runner->source);
  runner->op_ns = eb_arena_take(&runner->memory, ops);
  runner->op_least_ns = eb_arena_take(&runner->memory, ops);
  runner->all = eb_arena_take(&runner->memory, sizeof *runner->all);
  runner->frame = eb_arena_take(&runner->memory, sizeof *runner->frame);
  return EB_OK;
}

/* FILE of the argument for input `index`: "NAME=FILE", or just FILE when the model has one input. */
static const char *file_of(const struct eb_runner *runner, uint32_t index) {
  const struct eb_options *options = runner->options;
  const char *name = eb_input(runner->model, index)->name;
  size_t length = strlen(name);
  for (uint32_t i = 0; i < options->input_count; i++) {
    const char *argument = options->input[i];
    if (strncmp(argument, name, length) == 0 && argument[length] == '=') return argument + length + 1;
  }
  return eb_input_count(runner->model) == 1 && options->input_count == 1 ? options->input[0] : NULL;
}

static eb_status check_size(const struct eb_runner *runner, const struct eb_source *source, eb_error *error) {
  const struct eb_options *options = runner->options;
  if (!options->width) return EB_OK;
  eb_status status = eb_source_wants_image(source, error);
  return status ? status : eb_source_check_size(source, options->width, options->height, error);
}

static eb_status open_input(struct eb_runner *runner, uint32_t index, eb_error *error) {
  const struct eb_tensor *tensor = eb_input(runner->model, index);
  const char *file = file_of(runner, index);
  if (!file) {
    return eb_fail(error, EB_INPUT, "add --input FILE, or --input NAME=FILE once for each input",
                   "no data for the model's input %s", tensor->name);
  }
  bool standard = strcmp(file, "-") == 0;
  int fd = standard ? STDIN_FILENO : open(file, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return eb_fail(error, EB_IO, EB_HINT_PATH, "cannot open %s: %s", file, strerror(errno));
  struct eb_source *source = &runner->source[index];
  uint8_t *buffer = eb_arena_take(&runner->memory, EB_STREAM_BUFFER);
  uint8_t *planes = eb_arena_take(&runner->memory, eb_source_memory(tensor));
  struct eb_stream stream = eb_stream_of_fd(standard ? "standard input" : file, fd, buffer);
  eb_status status = eb_source_open(source, stream, runner->options->format, tensor, planes, error);
  return status ? status : check_size(runner, source, error);
}

eb_status eb_runner_open(struct eb_runner *runner, eb_error *error) {
  uint32_t inputs = eb_input_count(runner->model);
  eb_status status = open_memory(runner, error);
  if (!status && runner->options->input_count > inputs) {
    status = eb_fail(error, EB_INPUT, "give --input once for each input of the model",
                     "%u inputs are given, the model has %u", runner->options->input_count, inputs);
  }
  for (uint32_t i = 0; !status && i < inputs; i++) runner->source[i].stream.fd = -1;
  for (uint32_t i = 0; !status && i < inputs; i++) status = open_input(runner, i, error);
  return status;
}

void eb_runner_close(struct eb_runner *runner) {
  for (uint32_t i = 0; runner->source && i < eb_input_count(runner->model); i++) {
    if (runner->source[i].stream.fd > STDIN_FILENO) close(runner->source[i].stream.fd);
  }
  eb_arena_close(&runner->memory);
}

/* Waits for the next tick of a timer trigger. Ticks that passed while a frame ran are left out, not made up for. */
static void wait_for_tick(struct eb_runner *runner) {
  const eb_info *info = eb_model_info(runner->model);
  if (info->trigger != EB_TRIGGER_TIMER || runner->options->no_pace) return;
  uint64_t now = eb_clock_ns(), period = info->trigger_value * NS_PER_MS, tick = runner->next_tick_ns;
  if (tick == 0) tick = now;
  if (now > tick) tick += (now - tick + period - 1) / period * period;
  struct timespec until = {.tv_sec = (time_t)(tick / NS_PER_S), .tv_nsec = (long)(tick % NS_PER_S)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) continue;
  runner->next_tick_ns = tick + period;
}

/* A frame for every input; inputs must end together. A model without inputs has one frame. */
static eb_status read_frame(struct eb_runner *runner, bool *end, eb_error *error) {
  uint32_t inputs = eb_input_count(runner->model);
  *end = inputs == 0 && runner->frames > 0;
  for (uint32_t i = 0; i < inputs; i++) {
    bool ended;
    eb_status status = eb_source_next(&runner->source[i], eb_input(runner->model, i)->data, &ended, error);
    if (status) return status;
    if (i > 0 && ended != *end) {
      return eb_fail(error, EB_INPUT, "give the same number of frames for every input",
                     "%s: it has %s frames than the input before it", runner->source[i].stream.name,
                     ended ? "fewer" : "more");
    }
    *end = ended;
  }
  return EB_OK;
}

static void run_profiled(struct eb_runner *runner) {
  eb_run_profiled(runner->model, runner->op_ns);
  bool first = runner->all->count == 0;
  for (uint32_t i = 0; i < eb_op_count(runner->model); i++) {
    if (first || runner->op_ns[i] < runner->op_least_ns[i]) runner->op_least_ns[i] = runner->op_ns[i];
  }
}

/* Runs one frame --repeat times; the median of the times in nanoseconds. */
static uint64_t run_frame(struct eb_runner *runner) {
  uint32_t repeat = runner->options->repeat;
  uint64_t elapsed = 0;
  if (repeat > 1) eb_latency_reset(runner->frame);
  for (uint32_t i = 0; i < repeat; i++) {
    uint64_t start = eb_clock_ns();
    if (runner->options->profile) {
      run_profiled(runner);
    } else {
      eb_run(runner->model);
    }
    elapsed = eb_clock_ns() - start;
    eb_latency_add(runner->all, elapsed);
    if (repeat > 1) eb_latency_add(runner->frame, elapsed);
  }
  return repeat > 1 ? eb_latency_quantile(runner->frame, 0.5) : elapsed;
}

static void print_frame(const struct eb_runner *runner, uint64_t nanoseconds) {
  struct eb_json *out = runner->out;
  eb_json_print(out, "{\"seq\":%llu,\"outputs\":{", (unsigned long long)runner->frames);
  for (uint32_t i = 0; i < eb_output_count(runner->model); i++) {
    const struct eb_tensor *tensor = eb_output(runner->model, i);
    eb_json_print(out, i ? ",\"%s\":" : "\"%s\":", tensor->name);
    eb_json_tensor(out, tensor);
  }
  eb_json_print(out, "},\"latency_us\":%.3f}\n", (double)nanoseconds / 1000);
  eb_json_flush(out);
}

/* Tells who watches this process that a first result was given. */
static void tell_ready(const struct eb_runner *runner) {
  int fd = (int)runner->options->ready_fd;
  if (!fd || runner->out->failure) return;
  while (write(fd, "", 1) < 0 && errno == EINTR) continue;
  close(fd);
}

eb_status eb_runner_run(struct eb_runner *runner, eb_error *error) {
  while (!runner->out->failure) {
    bool end;
    wait_for_tick(runner);
    eb_status status = read_frame(runner, &end, error);
    if (status || end) return status;
    print_frame(runner, run_frame(runner));
    if (runner->frames++ == 0) tell_ready(runner);
  }
  return EB_OK;
}

static double microseconds(uint64_t nanoseconds) {
  return (double)nanoseconds / 1000;
}

static void report_summary(const struct eb_runner *runner, struct eb_json *out) {
  const char *format = runner->options->json
                           ? "{\"frames\":%llu,\"runs\":%llu,\"threads\":%u,\"latency_us\":{\"min\":%.3f,\"median\":%."
                             "3f,\"p99\":%.3f}}\n"
                           : "%llu frames, %llu runs, %u threads: latency in us: min %.3f, median %.3f, p99 %.3f\n";
  eb_json_print(out, format, (unsigned long long)runner->frames, (unsigned long long)runner->all->count,
                runner->threads, microseconds(runner->all->min), microseconds(eb_latency_quantile(runner->all, 0.5)),
                microseconds(eb_latency_quantile(runner->all, 0.99)));
}

static void report_op(const struct eb_runner *runner, uint32_t index, uint64_t total_ns, struct eb_json *out) {
  eb_op op = eb_op_at(runner->model, index);
  uint64_t least_ns = runner->op_least_ns[index];
  double share = total_ns ? (double)least_ns / (double)total_ns : 0;
  double gmacs = least_ns ? (double)op.macs / (double)least_ns : 0;
  if (!runner->options->json) {
    eb_json_print(out, "%10.3f us %5.1f %% %7.2f GMAC/s  %-20.40s %.200s\n", microseconds(least_ns), 100 * share, gmacs,
                  op.kind, op.name);
    return;
  }
  eb_json_print(out, "{\"op\":");
  eb_json_string(out, op.name);
  eb_json_print(out, ",\"kind\":");
  eb_json_string(out, op.kind);
  eb_json_print(out, ",\"latency_us\":%.3f,\"share\":%.4f,\"macs\":%llu}\n", microseconds(least_ns), share,
                (unsigned long long)op.macs);
}

static void report_profile(const struct eb_runner *runner, struct eb_json *out) {
  uint64_t total = 0;
  for (uint32_t i = 0; i < eb_op_count(runner->model); i++) total += runner->op_least_ns[i];
  for (uint32_t i = 0; i < eb_op_count(runner->model); i++) report_op(runner, i, total, out);
}

void eb_runner_report(const struct eb_runner *runner, struct eb_json *out) {
  if (!runner->all || runner->all->count == 0) return;
  if (runner->options->profile) report_profile(runner, out);
  report_summary(runner, out);
  eb_json_flush(out);
}
