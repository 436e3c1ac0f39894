/* edgebuild-run: the command line around edgebuild_run.h. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "commands.h"
#include "cpu.h"
#include "feed.h"
#include "keys.h"
#include "runner.h"
#include "trust_file.h"

#define DEFAULT_THREADS_MAX 4

/* Standard output and standard error; only here is anything printed. */
static struct eb_json out, err;

static eb_status open_bundle(const char *path, int *fd, eb_error *error) {
  struct stat info;
  *fd = open(path, O_RDONLY | O_CLOEXEC);
  if (*fd < 0) return eb_fail(error, EB_IO, EB_HINT_PATH, "cannot open %s: %s", path, strerror(errno));
  int failure = fstat(*fd, &info) < 0 ? errno : !S_ISREG(info.st_mode) ? EINVAL : info.st_size == 0 ? ENODATA : 0;
  if (!failure) return EB_OK;
  close(*fd);
  return eb_fail(error, EB_IO, "a bundle is a regular file", "cannot load %s: %s", path, strerror(failure));
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

static eb_status run_verify(const struct eb_options *options, const eb_feed *bundle, const eb_files *files,
                            eb_bytes trust, eb_error *error) {
  eb_model *model;
  eb_status status = eb_verify(bundle, files, trust, &model, error);
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
  if (!status && options->release) status = eb_check_latency(model, error);
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

static eb_status load_from(const struct eb_options *options, const eb_feed *feed, const eb_files *files, eb_bytes trust,
                           eb_model **model, uint32_t threads, eb_error *error) {
  return options->verify ? run_verify(options, feed, files, trust, error)
                         : eb_load(feed, files, trust, threads, options->check, model, error);
}

static eb_status load_bundle(const struct eb_options *options, struct eb_keys *keys, eb_model **model, uint32_t threads,
                             eb_error *error) {
  int fd;
  if (!keys->is_given) return eb_trust_file_missing(error);
  eb_status status = open_bundle(options->operand, &fd, error);
  if (status) return status;
  eb_feed feed = eb_feed_of_fd(fd);
  status = load_from(options, &feed, NULL, (eb_bytes){keys->given, keys->given_size}, model, threads, error);
  close(fd);
  return status;
}

static eb_status load_release(const struct eb_options *options, struct eb_keys *keys, eb_model **model,
                              uint32_t threads, eb_error *error) {
  struct eb_store store;
  struct eb_cpu cpu;
  eb_feed feed;
  int fd = -1;
  eb_cpu_detect(&cpu);
  eb_status status = eb_store_open(&store, eb_store_path(options), false, &cpu, error);
  if (!status) status = eb_keys_to_run(&store, keys, options->release, error);
  if (!status) status = eb_store_head_feed(&store, options->release, &fd, &feed, error);
  eb_files files = eb_store_files(&store, options->release);
  if (!status) status = load_from(options, &feed, &files, keys->file, model, threads, error);
  if (fd >= 0) close(fd);
  eb_store_close(&store);
  return status;
}

static eb_status run_bundle(const struct eb_options *options, eb_error *error) {
  static struct eb_keys keys;
  char path[EB_PATH_MAX];
  uint32_t threads = thread_count(options);
  eb_model *model;
  eb_trust_file_find(options->trust, path);
  keys.is_given = path[0] != 0;
  eb_status status = keys.is_given ? eb_trust_file_read(path, keys.given, &keys.given_size, error) : EB_OK;
  if (!status) status = (options->release ? load_release : load_bundle)(options, &keys, &model, threads, error);
  if (status || options->verify) return status;
  status = options->check ? run_check(options, model, error) : run_frames(options, model, threads, error);
  eb_free(model);
  return status;
}

/* The command's status, or for `run` the exit code of what it ran. */
static eb_status run_command(const struct eb_options *options, int argc, char **argv, int *code, eb_error *error) {
  struct eb_commands commands = {.options = options, .argc = argc, .argv = argv, .out = &out, .err = &err};
  eb_status status = eb_command_run(&commands, error);
  eb_json_flush(&err);
  *code = commands.code;
  return status;
}

/* A standard stream that is closed stays so for who uses it, but no file of the store gets its number: what is said
 * would be written into that. */
static void occupy_streams(void) {
  static const int unusable[] = {O_WRONLY, O_RDONLY, O_RDONLY};
  for (int number = 0; number < 3; number++) {
    if (fcntl(number, F_GETFD) < 0 && errno == EBADF && open("/dev/null", unusable[number]) != number) _exit(EB_IO);
  }
}

int main(int argc, char **argv) {
  occupy_streams();
  signal(SIGPIPE, SIG_IGN);
  /* Ignored by who started us, it would leave no exit code of a child. */
  signal(SIGCHLD, SIG_DFL);
  out.fd = STDOUT_FILENO;
  err.fd = STDERR_FILENO;
  struct eb_options options;
  eb_error error = {0};
  struct eb_cpu cpu;
  int code = 0;
  eb_status status = eb_options_parse(argc, argv, &options, &error);
  if (!status && options.help) {
    for (const char *line = eb_options_help; *line; line++) eb_json_print(&out, "%c", *line);
  } else if (!status && options.version) {
    eb_cpu_detect(&cpu);
    eb_json_print(&out, "edgebuild-run %s (ABI %u, %s)\n", EB_VERSION, EB_ABI, eb_arch_name(cpu.arch));
  } else if (!status) {
    status = options.command ? run_command(&options, argc, argv, &code, &error) : run_bundle(&options, &error);
  }
  eb_status written = status ? status : finish_output(&error);
  if (written) eb_json_error(&err, &error, options.json);
  eb_json_flush(&err);
  return written ? (int)written : code;
}
