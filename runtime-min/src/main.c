/* edgebuild-run: the command line around edgebuild_run.h. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "cpu.h"
#include "trust.h"
#include "runner.h"

#define DEFAULT_THREADS_MAX 4

/* Standard output and standard error; only here is anything printed. */
static struct eb_json out, err;

static void print_error(const struct eb_options *options, const eb_error *error) {
  if (options->json) {
    eb_json_print(&err, "{\"error\":");
    eb_json_string(&err, error->message);
    eb_json_print(&err, ",\"hint\":");
    eb_json_string(&err, error->hint);
    eb_json_print(&err, ",\"code\":\"%s\"}\n", eb_status_name(error->status));
  } else {
    eb_json_print(&err, "error: %s\n", error->message);
    if (error->hint[0]) eb_json_print(&err, "hint: %s\n", error->hint);
  }
  eb_json_flush(&err);
}

/* A feed of the file whose descriptor `context` points to. */
static ssize_t read_file(void *context, void *data, size_t size) {
  for (;;) {
    ssize_t got = read(*(int *)context, data, size);
    if (got >= 0) return got;
    if (errno != EINTR) return -errno;
  }
}

static eb_status open_bundle(const char *path, int *fd, eb_error *error) {
  struct stat info;
  *fd = open(path, O_RDONLY | O_CLOEXEC);
  if (*fd < 0) return eb_fail(error, EB_IO, EB_HINT_PATH, "cannot open %s: %s", path, strerror(errno));
  int failure = fstat(*fd, &info) < 0 ? errno : !S_ISREG(info.st_mode) ? EINVAL : info.st_size == 0 ? ENODATA : 0;
  if (!failure) return EB_OK;
  close(*fd);
  return eb_fail(error, EB_IO, "a bundle is a regular file", "cannot load %s: %s", path, strerror(failure));
}

/* Where trusted keys are looked for: the option, else the variable, else the user's file, else the system's. */
static eb_status find_trust(const struct eb_options *options, char *path, size_t size, eb_error *error) {
  const char *variable = getenv("EDGEBUILD_TRUST"), *home = getenv("HOME");
  const char *chosen = options->trust ? options->trust : variable && *variable ? variable : NULL;
  if (chosen) {
    snprintf(path, size, "%s", chosen);
    return EB_OK;
  }
  const char *config = getenv("XDG_CONFIG_HOME");
  if (config && *config) {
    snprintf(path, size, "%s/edgebuild/trust", config);
    if (access(path, F_OK) == 0) return EB_OK;
  }
  snprintf(path, size, "%s/.config/edgebuild/trust", home ? home : "");
  if (home && access(path, F_OK) == 0) return EB_OK;
  snprintf(path, size, "/etc/edgebuild/trust");
  if (access(path, F_OK) == 0) return EB_OK;
  return eb_fail(error, EB_REFUSED, "give --trust FILE, or write ~/.config/edgebuild/trust with: edgebuild keys show",
                 "there is no trust file, so no bundle can be verified");
}

static eb_status read_trust(const struct eb_options *options, uint8_t *buffer, eb_bytes *trust, eb_error *error) {
  char path[4096];
  eb_status status = find_trust(options, path, sizeof path, error);
  if (status) return status;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return eb_fail(error, EB_IO, EB_HINT_PATH, "cannot open the trust file %s: %s", path, strerror(errno));
  struct eb_stream stream = {.name = path, .fd = fd};
  *trust = (eb_bytes){buffer, 0};
  status = eb_stream_read(&stream, buffer, EB_TRUST_BYTES_MAX + 1, &trust->size, error);
  close(fd);
  return status;
}

static uint32_t thread_count(const struct eb_options *options) {
  if (options->threads) return options->threads;
  cpu_set_t cores;
  int count = sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
  return count < DEFAULT_THREADS_MAX ? (uint32_t)count : DEFAULT_THREADS_MAX;
}

static eb_status finish_output(eb_error *error) {
  eb_json_flush(&out);
  /* Whoever reads the output may stop before its end. */
  if (!out.failure || out.failure == EPIPE) return EB_OK;
  return eb_fail(error, EB_IO, "free some space", "cannot write to standard output: %s", strerror(out.failure));
}

static eb_status run_verify(const struct eb_options *options, const eb_feed *bundle, eb_bytes trust, eb_error *error) {
  eb_model *model;
  eb_status status = eb_verify(bundle, trust, &model, error);
  if (status) return status;
  const eb_info *info = eb_model_info(model);
  eb_json_print(&out,
                options->json
                    ? "{\"verified\":true,\"name\":\"%s\",\"version\":\"%s\",\"target\":\"%s\",\"release\":%u,"
                      "\"signer\":\"%s\",\"files\":%u}\n"
                    : "verified: %s %s for %s, release %u, signed by %s, %u files\n",
                info->name, info->version, info->target, info->release, info->signer, info->file_count);
  eb_free(model);
  return EB_OK;
}

static eb_status run_check(const struct eb_options *options, eb_model *model, eb_error *error) {
  uint64_t samples;
  eb_status status = eb_check(model, &samples, error);
  if (status) return status;
  eb_json_print(&out,
                options->json ? "{\"check\":true,\"samples\":%llu,\"outputs\":%u}\n"
                              : "check: %llu golden samples, %u outputs: identical\n",
                (unsigned long long)samples, eb_output_count(model));
  return EB_OK;
}

/* A bundle that the build machine could not run shows here, before its first result, that it computes what it should.
 */
static eb_status check_first(eb_model *model, eb_error *error) {
  uint64_t samples;
  if (eb_model_info(model)->checked) return EB_OK;
  eb_status status = eb_check(model, &samples, error);
  eb_drop_golden(model);
  if (status != EB_CHECK) return status;
  eb_error found = *error;
  return eb_fail(error, EB_CHECK, found.hint, "refused: the bundle's first run anywhere is not right: %.300s",
                 found.message);
}

static eb_status run_frames(const struct eb_options *options, eb_model *model, uint32_t threads, eb_error *error) {
  struct eb_runner runner = {.model = model, .options = options, .threads = threads, .out = &out};
  eb_status status = eb_runner_open(&runner, error);
  if (!status) status = check_first(model, error);
  if (!status) {
    status = eb_runner_run(&runner, error);
    eb_runner_report(&runner, &err);
  }
  eb_runner_close(&runner);
  return status;
}

static eb_status load_bundle(const struct eb_options *options, eb_bytes trust, eb_model **model, uint32_t threads,
                             eb_error *error) {
  int fd;
  eb_status status = open_bundle(options->bundle, &fd, error);
  if (status) return status;
  eb_feed feed = {.read = read_file, .context = &fd};
  status = options->verify ? run_verify(options, &feed, trust, error)
                           : eb_load(&feed, trust, threads, options->check, model, error);
  close(fd);
  return status;
}

static eb_status run_bundle(const struct eb_options *options, eb_error *error) {
  static uint8_t trust_buffer[EB_TRUST_BYTES_MAX + 1];
  uint32_t threads = thread_count(options);
  eb_bytes trust;
  eb_model *model;
  eb_status status = read_trust(options, trust_buffer, &trust, error);
  if (!status) status = load_bundle(options, trust, &model, threads, error);
  if (status || options->verify) return status;
  status = options->check ? run_check(options, model, error) : run_frames(options, model, threads, error);
  eb_free(model);
  return status;
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);
  out.fd = STDOUT_FILENO;
  err.fd = STDERR_FILENO;
  struct eb_options options;
  eb_error error = {0};
  struct eb_cpu cpu;
  eb_status status = eb_options_parse(argc, argv, &options, &error);
  if (!status && options.help) {
    for (const char *line = eb_options_help; *line; line++) eb_json_print(&out, "%c", *line);
  } else if (!status && options.version) {
    eb_cpu_detect(&cpu);
    eb_json_print(&out, "edgebuild-run %s (ABI %u, %s)\n", EB_VERSION, EB_ABI, eb_arch_name(cpu.arch));
  } else if (!status) {
    status = run_bundle(&options, &error);
  }
  eb_status written = status ? status : finish_output(&error);
  if (written) print_error(&options, &error);
  return (int)written;
}
