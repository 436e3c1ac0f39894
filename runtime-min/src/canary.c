#include "canary.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "launch.h"

#define LIMIT_MS 60000
#define STEP_MS 50

/* A runtime under trial, and the first of what it says on standard error. */
struct trial {
  pid_t child;
  int errors;
  size_t used;
  char text[300];
};

static uint64_t limit_ms(void) {
#ifdef EB_TEST_HOOKS
  const char *shorter = getenv("EDGEBUILD_TEST_CANARY_MS");
  if (shorter) return strtoull(shorter, NULL, 10);
#endif
  return LIMIT_MS;
}

static eb_status cannot(const char *what, eb_error *error) {
  return eb_fail(error, EB_MEMORY, "free memory, or end other processes", "cannot start the canary: %s: %s", what,
                 strerror(errno));
}

static eb_status start(struct eb_store *store, const struct eb_head *head, const char *trust_path, int runtime,
                       struct trial *trial, eb_error *error) {
  /* execve takes strings that it does not write to. */
  const char *const argv[] = {
      "edgebuild-run", "--store", store->path, "--release", head->id, "--check", trust_path ? "--trust" : NULL,
      trust_path,      NULL};
  int errors[2], nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (nothing < 0) return cannot("/dev/null", error);
  if (pipe2(errors, O_CLOEXEC)) {
    close(nothing);
    return cannot("pipe", error);
  }
  pid_t parent = getpid();
  trial->child = fork();
  if (trial->child == 0) {
    const int streams[] = {nothing, nothing, errors[1]};
    eb_launch_become(runtime, (char *const *)(uintptr_t)argv, streams, parent, SIGKILL);
  }
  close(nothing);
  close(errors[1]);
  trial->errors = errors[0];
  if (trial->child > 0) return EB_OK;
  close(errors[0]);
  return cannot("fork", error);
}

/* Takes what it says; false when it has closed standard error. */
static bool listen_to(struct trial *trial) {
  char text[512];
  ssize_t got = read(trial->errors, text, sizeof text);
  if (got <= 0) return got < 0 && errno == EINTR;
  size_t room = sizeof trial->text - 1 - trial->used, taken = (size_t)got < room ? (size_t)got : room;
  memcpy(trial->text + trial->used, text, taken);
  trial->used += taken;
  return true;
}

/* False when the time was over; then it was ended. */
static bool wait_for(struct trial *trial, int *ended) {
  uint64_t end = eb_clock_ms() + limit_ms();
  static const struct timespec moment = {.tv_nsec = 1000000};
  struct pollfd said = {.fd = trial->errors, .events = POLLIN};
  while (eb_launch_look(trial->child, ended, WNOHANG) == 0) {
    if (eb_clock_ms() >= end) {
      kill(trial->child, SIGKILL);
      eb_launch_look(trial->child, ended, 0);
      return false;
    }
    if (said.fd < 0) {
      nanosleep(&moment, NULL);
    } else if (poll(&said, 1, STEP_MS) > 0 && !listen_to(trial)) {
      said.fd = -1;
    }
  }
  while (said.fd >= 0 && poll(&said, 1, 0) > 0 && listen_to(trial)) continue;
  return true;
}

/* Its own message, without what surrounds it. */
static const char *message_of(struct trial *trial) {
  static const char prefix[] = "error: ";
  trial->text[trial->used] = 0;
  char *end = strchr(trial->text, '\n');
  if (end) *end = 0;
  for (char *at = trial->text; *at; at++) {
    if ((unsigned char)*at < 0x20 || *at == 0x7f) *at = '?';
  }
  return strncmp(trial->text, prefix, strlen(prefix)) == 0 ? trial->text + strlen(prefix) : trial->text;
}

static const char hint[] = "what was current stays; compile the release again, with a higher release counter";

static eb_status judge_signal(int number, eb_error *error) {
  if (number == SIGKILL) {
    return eb_fail(error, EB_MEMORY, "free memory, then install it again",
                   "the canary was killed, as the kernel does where memory runs out");
  }
  return eb_fail(error, EB_CHECK, hint, "the canary failed: it crashed (%s)", strsignal(number));
}

static eb_status judge(struct trial *trial, bool in_time, int ended, eb_error *error) {
  if (!in_time) {
    return eb_fail(error, EB_CHECK, hint, "the canary failed: it did not end within %llu s",
                   (unsigned long long)((limit_ms() + 999) / 1000));
  }
  if (WIFSIGNALED(ended)) return judge_signal(WTERMSIG(ended), error);
  int code = WEXITSTATUS(ended);
  if (code == 0) return EB_OK;
  const char *message = message_of(trial);
  /* What another attempt may not meet again is no reason to refuse the release for ever. */
  if (code == EB_IO || eb_launch_failed(code)) {
    return eb_fail(error, code == EB_IO ? EB_IO : EB_MEMORY,
                   code == 127 ? "free memory; if it comes again, this device lacks a library of the release's runtime"
                               : "make room, then install it again",
                   "the canary could not run: %s", message);
  }
  return eb_fail(error, EB_CHECK, hint, "the canary failed: exit code %d%s%s", code, *message ? ": " : "", message);
}

/* Whether it failed at what a machine may fail at for a moment, such as a read: at all but the check itself, and time.
 */
static bool is_worth_another(bool in_time, int ended) {
  return in_time && !(WIFEXITED(ended) && WEXITSTATUS(ended) == EB_CHECK);
}

static eb_status try_once(struct eb_store *store, const struct eb_head *head, const char *trust_path,
                          const struct eb_cpu *cpu, bool *again, eb_error *error) {
  struct trial trial = {0};
  int runtime, ended = EB_IO << 8; /* until we are told how: nobody has seen it pass */
  *again = false;
  eb_status status = eb_launch_open(store, head, cpu, &runtime, error);
  if (status) return status;
  status = start(store, head, trust_path, runtime, &trial, error);
  close(runtime);
  if (status) return status;
  bool in_time = wait_for(&trial, &ended);
  close(trial.errors);
  *again = is_worth_another(in_time, ended);
  return judge(&trial, in_time, ended, error);
}

eb_status eb_canary(struct eb_store *store, const struct eb_head *head, const char *trust_path,
                    const struct eb_cpu *cpu, eb_error *error) {
  bool again, holds;
  eb_status status = try_once(store, head, trust_path, cpu, &again, error);
  if (status == EB_CHECK && again) status = try_once(store, head, trust_path, cpu, &again, error);
  if (status != EB_CHECK || !again) return status;
  /* A disk that lost, or does not give back, what was written to it is not the release's fault either. */
  if (eb_store_holds_all(store, &head->manifest, &holds, error)) return error->status;
  return holds ? status
               : eb_fail(error, EB_IO, "the store's disk may be damaged; look into the system's log",
                         "the store does not give back what was written to it");
}
