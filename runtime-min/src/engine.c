/* The plan executor: everything eb_run needs is laid out by eb_load. */
#include <string.h>

#include "arena.h"
#include "bundle.h"
#include "clock.h"
#include "edgebuild_run.h"
#include "plan.h"
#include "pool.h"
#include "program.h"
#include "trial.h"

struct eb_model {
  struct eb_bundle bundle;
  struct eb_info info;
  struct eb_pool pool;
  struct eb_trial trial;
  struct eb_program program;
  struct eb_plan plan;
  struct eb_arena head;   /* this struct */
  struct eb_arena tables; /* steps and their times, arguments, inputs, outputs */
  struct eb_arena memory; /* the model's arena and the threads' scratch */
  const uint8_t *weights;
  struct eb_step *steps;
  struct eb_tensor *inputs;
  struct eb_tensor *outputs;
};

static void fill_info(struct eb_info *info, const struct eb_bundle *bundle) {
  const struct eb_manifest *manifest = &bundle->head.manifest;
  *info = (struct eb_info){
      .name = manifest->name,
      .version = manifest->version,
      .target = manifest->target,
      .function = manifest->function,
      .release = manifest->release,
      .made = manifest->made,
      .expires = manifest->expires,
      .timeout_ms = manifest->timeout_ms,
      .trigger = manifest->trigger,
      .trigger_value = manifest->trigger_value,
      .speed_only = manifest->speed_only,
      .checked = manifest->checked,
      .file_count = manifest->file_count,
  };
  memcpy(info->signer, bundle->head.signer, sizeof info->signer);
  memcpy(info->id, bundle->head.id, sizeof info->id);
}

static size_t tables_size(const struct eb_plan *plan) {
  return eb_align_up(plan->op_count * sizeof(struct eb_step)) +
         eb_align_up(plan->op_count * sizeof(struct eb_step_times)) +
         eb_align_up((plan->arg_count + EB_ARGS_MAX) * sizeof(void *)) +
         eb_align_up(plan->input_count * sizeof(struct eb_tensor)) +
         eb_align_up(plan->output_count * sizeof(struct eb_tensor));
}

static eb_status open_plan(struct eb_model *model, eb_error *error) {
  eb_bytes weights = eb_bundle_file(&model->bundle, "weights.bin");
  model->weights = weights.data;
  eb_status status = eb_plan_open(&model->plan, eb_bundle_file(&model->bundle, "plan.bin"), weights.size, error);
  return status ? status : eb_arena_open(&model->tables, tables_size(&model->plan), error);
}

static eb_status check_kernels(const struct eb_model *model, eb_error *error) {
  for (uint32_t i = 0; i < model->plan.op_count; i++) {
    if (eb_plan_op(&model->plan, i).kernel < model->program.table->kernel_count) continue;
    return eb_fail(error, EB_REFUSED, "the compiler and this runtime disagree; compile the recipe again",
                   "plan.bin: operator %u: program.so has no such kernel", i);
  }
  return EB_OK;
}

static eb_status open_program(struct eb_model *model, const struct eb_cpu *cpu, eb_error *error) {
  const struct eb_manifest *manifest = &model->bundle.head.manifest;
  const struct eb_file *file = eb_manifest_file(manifest, "program.so");
  eb_status status = eb_program_open(&model->program, eb_bundle_file(&model->bundle, "program.so"), file->sha256,
                                     manifest->needs, cpu, error);
  eb_bundle_drop(&model->bundle, file);
  return status ? status : check_kernels(model, error);
}

/* The arena, then one scratch area for each thread. */
static eb_status open_memory(struct eb_model *model, uint32_t threads, eb_error *error) {
  size_t scratch = model->plan.scratch_bytes;
  eb_status status = eb_arena_open_whole(&model->memory, model->plan.arena_bytes + threads * scratch, error);
  if (status) return status;
  return eb_pool_start(&model->pool, threads, model->memory.base + model->plan.arena_bytes, scratch, error);
}

/* Kernels take their arguments as plain pointers; those that lie in the weights are only read (SPEC 5). */
static void *tensor_address(const struct eb_model *model, uint32_t index) {
  struct eb_plan_tensor tensor = eb_plan_tensor(&model->plan, index);
  const uint8_t *base = tensor.in_weights ? model->weights : model->memory.base;
  return (void *)(uintptr_t)(base + tensor.offset);
}

static void make_steps(struct eb_model *model) {
  const struct eb_plan *plan = &model->plan;
  model->steps = eb_arena_take(&model->tables, plan->op_count * sizeof *model->steps);
  void **args = eb_arena_take(&model->tables, (plan->arg_count + EB_ARGS_MAX) * sizeof *args);
  for (uint32_t i = 0; i < plan->arg_count; i++) args[i] = tensor_address(model, eb_plan_arg(plan, i));
  for (uint32_t i = 0; i < plan->op_count; i++) {
    struct eb_plan_op op = eb_plan_op(plan, i);
    model->steps[i] = (struct eb_step){.kernel = model->program.table->kernels[op.kernel],
                                       .args = args + op.first_arg,
                                       .work = (int32_t)op.work,
                                       .grain = (int32_t)op.grain};
    model->steps[i].pieces = eb_pool_pieces(&model->pool, model->steps[i].work, model->steps[i].grain, UINT64_MAX);
  }
  struct eb_step_times *times = eb_arena_take(&model->tables, plan->op_count * sizeof *times);
  eb_trial_open(&model->trial, &model->pool, model->steps, plan->op_count, times);
}

/* Manifest and plan must agree; the shape is the manifest's, the memory the plan's. */
static eb_status make_ports(struct eb_model *model, const char *side, const struct eb_port *ports, uint32_t count,
                            uint32_t plan_count, uint32_t (*tensor_of)(const struct eb_plan *, uint32_t),
                            struct eb_tensor **tensors, eb_error *error) {
  static const char remake[] = "the compiler and this runtime disagree; compile the recipe again";
  if (count != plan_count) {
    return eb_fail(error, EB_REFUSED, remake, "the manifest has %u %ss, plan.bin %u", count, side, plan_count);
  }
  *tensors = eb_arena_take(&model->tables, count * sizeof **tensors);
  for (uint32_t i = 0; i < count; i++) {
    uint32_t index = tensor_of(&model->plan, i);
    struct eb_plan_tensor tensor = eb_plan_tensor(&model->plan, index);
    if (tensor.dtype != ports[i].dtype || tensor.bytes != ports[i].bytes) {
      return eb_fail(error, EB_REFUSED, remake, "%s %s is not the same in manifest and plan.bin", side, ports[i].name);
    }
    (*tensors)[i] = (struct eb_tensor){.name = ports[i].name,
                                       .dtype = ports[i].dtype,
                                       .rank = ports[i].rank,
                                       .bytes = ports[i].bytes,
                                       .data = tensor_address(model, index)};
    memcpy((*tensors)[i].dim, ports[i].dim, sizeof ports[i].dim);
  }
  return EB_OK;
}

static eb_status load(struct eb_model *model, const eb_feed *bundle, const eb_files *files, eb_bytes trust,
                      uint32_t threads, enum eb_keep keep, eb_error *error) {
  const struct eb_manifest *manifest = &model->bundle.head.manifest;
  struct eb_cpu cpu;
  eb_cpu_detect(&cpu);
  eb_status status = eb_bundle_read(&model->bundle, bundle, files, trust, &cpu, keep, error);
  if (status) return status;
  fill_info(&model->info, &model->bundle);
  status = open_plan(model, error);
  if (!status) status = open_program(model, &cpu, error);
  if (!status) status = open_memory(model, threads, error);
  if (status) return status;
  make_steps(model);
  status = make_ports(model, "input", manifest->input, manifest->input_count, model->plan.input_count, eb_plan_input,
                      &model->inputs, error);
  if (status) return status;
  return make_ports(model, "output", manifest->output, manifest->output_count, model->plan.output_count, eb_plan_output,
                    &model->outputs, error);
}

static eb_status new_model(struct eb_model **model, eb_error *error) {
  struct eb_arena head;
  eb_status status = eb_arena_open(&head, sizeof **model, error);
  if (status) return status;
  *model = eb_arena_take(&head, sizeof **model);
  (*model)->head = head;
  return EB_OK;
}

eb_status eb_load(const eb_feed *bundle, const eb_files *files, eb_bytes trust, uint32_t threads, bool golden,
                  eb_model **model, eb_error *error) {
  *model = NULL;
  if (threads < 1 || threads > EB_THREADS_MAX) {
    return eb_fail(error, EB_INPUT, "give a number from 1 to 64", "%u threads", threads);
  }
  struct eb_model *made = NULL;
  eb_status status = new_model(&made, error);
  if (status) return status;
  status = load(made, bundle, files, trust, threads, golden ? EB_KEEP_GOLDEN : EB_KEEP_PROGRAM, error);
  if (status) {
    eb_free(made);
    return status;
  }
  *model = made;
  return EB_OK;
}

eb_status eb_verify(const eb_feed *bundle, const eb_files *files, eb_bytes trust, eb_model **model, eb_error *error) {
  *model = NULL;
  struct eb_cpu cpu;
  eb_cpu_detect(&cpu);
  struct eb_model *made = NULL;
  eb_status status = new_model(&made, error);
  if (status) return status;
  status = eb_bundle_read(&made->bundle, bundle, files, trust, &cpu, EB_KEEP_NONE, error);
  if (status) {
    eb_free(made);
    return status;
  }
  fill_info(&made->info, &made->bundle);
  *model = made;
  return EB_OK;
}

void eb_free(eb_model *model) {
  if (!model) return;
  if (model->pool.started) eb_pool_stop(&model->pool);
  eb_program_close(&model->program);
  eb_arena_close(&model->memory);
  eb_arena_close(&model->tables);
  eb_bundle_close(&model->bundle);
  struct eb_arena head = model->head;
  eb_arena_close(&head);
}

void eb_run(eb_model *model) {
  uint64_t environment = eb_float_enter();
  eb_trial_run(&model->trial);
  eb_float_leave(environment);
}

void eb_run_profiled(eb_model *model, uint64_t *nanoseconds) {
  uint64_t environment = eb_float_enter();
  bool together = model->pool.thread_count > 1;
  uint64_t before = eb_clock_ns();
  for (uint32_t i = 0; i < model->plan.op_count; i++) {
    eb_pool_run(&model->pool, &model->steps[i], together);
    uint64_t after = eb_clock_ns();
    nanoseconds[i] = after - before;
    before = after;
  }
  eb_float_leave(environment);
}

const eb_info *eb_model_info(const eb_model *model) {
  return &model->info;
}

uint32_t eb_input_count(const eb_model *model) {
  return model->plan.input_count;
}

uint32_t eb_output_count(const eb_model *model) {
  return model->plan.output_count;
}

const eb_tensor *eb_input(const eb_model *model, uint32_t index) {
  return index < model->plan.input_count ? &model->inputs[index] : NULL;
}

const eb_tensor *eb_output(const eb_model *model, uint32_t index) {
  return index < model->plan.output_count ? &model->outputs[index] : NULL;
}

eb_bytes eb_file(const eb_model *model, const char *path) {
  return eb_bundle_file(&model->bundle, path);
}

void eb_drop_golden(eb_model *model) {
  eb_bundle_drop_golden(&model->bundle);
}

uint32_t eb_op_count(const eb_model *model) {
  return model->plan.op_count;
}

eb_op eb_op_at(const eb_model *model, uint32_t index) {
  struct eb_plan_op op = eb_plan_op(&model->plan, index);
  return (eb_op){
      .name = eb_plan_string(&model->plan, op.name), .kind = eb_plan_string(&model->plan, op.kind), .macs = op.macs};
}
