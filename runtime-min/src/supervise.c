#include "supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "launch.h"

#define WELL_MS 600000u /* a process that runs on so long behind its first result is well */
#define LOOK_MS 10000

/* One process of one release. */
struct attempt {
  struct eb_state before;
  char id[EB_ID_TEXT]; /* of the release */
  bool unlocked;       /* the state could not be locked: nothing is counted */
  bool raised;         /* its crashes were raised before it started */
  bool gave_result;
  bool confirmed; /* and the state says so */
  bool well;      /* and it ran on; the state says so, too */
  uint64_t result_ms;
  bool told_to_end; /* by a signal to us, which it got too */
  int runtime;      /* to execute */
  int signals;      /* a descriptor of those that come to us */
  int ready;        /* a byte comes here with the first result */
  pid_t child;
  int ended;
};

static uint64_t well_ms(void) {
#ifdef EB_TEST_HOOKS
  const char *shorter = getenv("EDGEBUILD_TEST_WELL_MS");
  if (shorter) return strtoull(shorter, NULL, 10);
#endif
  return WELL_MS;
}

static eb_status not_installed(const struct eb_supervise *run, eb_error *error) {
  return eb_fail(error, EB_INPUT, "edgebuild-run status lists the names; edgebuild-run install FILE installs",
                 "nothing is installed as %s in the store %s", run->name, run->store->path);
}

static bool has_failed(const struct eb_state *state) {
  return state->crashes >= EB_CRASHES_MAX && state->previous[0];
}

/* Ends a change: a release that has failed is given up on the way. `blameless`: something else is to blame, so that it
 * may be installed again. Where the disk does not take that, the other release runs all the same. */
static eb_status end_change(struct eb_supervise *run, struct eb_state *state, bool changed, bool blameless,
                            bool *given_up, eb_error *error) {
  char from[EB_ID_TEXT];
  memcpy(from, state->current, EB_ID_TEXT);
  *given_up = has_failed(state);
  if (*given_up) eb_state_roll_back(state, !blameless);
  eb_status status = eb_store_state_end(run->store, run->name, changed || *given_up ? state : NULL, error);
  if (*given_up && status) memcpy(run->instead, state->current, EB_ID_TEXT);
  if (*given_up) run->rolled_back(run->context, from, state->current);
  return status;
}

/* A disk that takes no account of crashes keeps no release from running. */
static void warn(const struct eb_supervise *run, eb_status status, const eb_error *error) {
  if (status) run->not_counted(run->context, error);
}

/* What is to be run: the current release, or the one before it when that has failed and nobody noticed (the power
 * went).
 */
static eb_status choose(struct eb_supervise *run, struct attempt *attempt, eb_error *error) {
  bool found, given_up;
  eb_error why;
  eb_status status = eb_store_state_begin(run->store, run->name, &attempt->before, &found, &why);
  bool locked = status == EB_OK;
  attempt->unlocked = !locked;
  warn(run, status, &why);
  /* Without the lock it can be read all the same. */
  if (!locked) status = eb_store_state(run->store, run->name, &attempt->before, &found, error);
  if (status) return status;
  if (!found) {
    eb_store_state_end(run->store, run->name, NULL, NULL);
    return not_installed(run, error);
  }
  if (locked) {
    warn(run, end_change(run, &attempt->before, false, false, &given_up, &why), &why);
  } else if (has_failed(&attempt->before)) {
    memcpy(run->instead, attempt->before.previous, EB_ID_TEXT);
  }
  memcpy(attempt->id, run->instead[0] ? run->instead : attempt->before.current, EB_ID_TEXT);
  return EB_OK;
}

/* Opens the state to change it while the release is still the current one; *open is false where it is not. */
static eb_status reopen(struct eb_supervise *run, const struct attempt *attempt, struct eb_state *state, bool *open,
                        eb_error *error) {
  *open = false;
  if (attempt->unlocked) return EB_OK;
  eb_status status = eb_store_state_begin(run->store, run->name, state, open, error);
  if (status) return status;
  if (*open && strcmp(state->current, attempt->id) == 0) return EB_OK;
  *open = false;
  return eb_store_state_end(run->store, run->name, NULL, error);
}

/* A release that is not confirmed counts as crashed until it has given a result. */
static eb_status raise_crashes(struct eb_supervise *run, struct attempt *attempt, eb_error *error) {
  struct eb_state state;
  bool open;
  eb_status status = reopen(run, attempt, &state, &open, error);
  if (status || !open) return status;
  bool raises = !state.confirmed && state.crashes < EB_CRASHES_MAX;
  state.crashes += raises;
  status = eb_store_state_end(run->store, run->name, raises ? &state : NULL, error);
  attempt->raised = !status && !state.confirmed;
  return status;
}

static eb_status confirm(struct eb_supervise *run, struct attempt *attempt, eb_error *error) {
  struct eb_state state;
  bool open;
  eb_status status = reopen(run, attempt, &state, &open, error);
  if (status) return status;
  attempt->confirmed = true;
  if (!open) return EB_OK;
  bool changes = !state.confirmed;
  if (changes) state.crashes = attempt->before.crashes; /* the start counts no more, those before it do */
  state.confirmed = true;
  return eb_store_state_end(run->store, run->name, changes ? &state : NULL, error);
}

/* It ended well, or runs on: crashes before it were not in a row. */
static eb_status forget_crashes(struct eb_supervise *run, const struct attempt *attempt, eb_error *error) {
  struct eb_state state;
  bool open;
  eb_status status = reopen(run, attempt, &state, &open, error);
  if (status || !open) return status;
  bool changes = state.crashes > 0;
  state.crashes = 0;
  return eb_store_state_end(run->store, run->name, changes ? &state : NULL, error);
}

/* It ended without a result, but it did not crash: nothing is known about it. */
static eb_status restore(struct eb_supervise *run, const struct attempt *attempt, eb_error *error) {
  struct eb_state state;
  bool open;
  eb_status status = reopen(run, attempt, &state, &open, error);
  if (status || !open) return status;
  bool changes = !state.confirmed && state.crashes != attempt->before.crashes;
  state.crashes = attempt->before.crashes;
  return eb_store_state_end(run->store, run->name, changes ? &state : NULL, error);
}

static eb_status count_crash(struct eb_supervise *run, const struct attempt *attempt, bool blameless, bool *given_up,
                             eb_error *error) {
  struct eb_state state;
  bool open;
  *given_up = false;
  eb_status status = reopen(run, attempt, &state, &open, error);
  if (status || !open) return status;
  bool raises = (state.confirmed || !attempt->raised) && state.crashes < EB_CRASHES_MAX;
  state.crashes += raises;
  return end_change(run, &state, raises, blameless, given_up, error);
}

/* The head and the runtime of the release. *damaged: it is the store that is to blame. */
static eb_status open_release(struct eb_supervise *run, struct attempt *attempt, bool *damaged, eb_error *error) {
  struct eb_arena memory;
  eb_status status = eb_arena_open(&memory, sizeof(struct eb_head), error);
  *damaged = false;
  if (status) return status;
  struct eb_head *head = eb_arena_take(&memory, sizeof *head);
  status = eb_store_head(run->store, attempt->id, head, error);
  *damaged = status == EB_REFUSED || status == EB_IO;
  if (!status) status = eb_keys_to_run(run->store, run->keys, attempt->id, error);
  if (!status) status = eb_head_verify(head, run->keys->file, error);
  if (!status) status = eb_manifest_fits(&head->manifest, run->cpu, error);
  if (!status) {
    status = eb_launch_open(run->store, head, run->cpu, &attempt->runtime, error);
    *damaged = status == EB_REFUSED || status == EB_IO;
  }
  eb_arena_close(&memory);
  return status;
}

static eb_status cannot(const char *what, eb_error *error) {
  return eb_fail(error, EB_MEMORY, "free memory, or end other processes", "cannot start the release: %s: %s", what,
                 strerror(errno));
}

static void become(const struct eb_supervise *run, const struct attempt *attempt, int ready, pid_t parent,
                   const sigset_t *old_signals) {
  char number[16];
  size_t count = 0;
  while (run->argv[count]) count++;
  snprintf(number, sizeof number, "%d", ready);
  run->argv[count++] = "--release";
  run->argv[count++] = attempt->id;
  run->argv[count++] = "--ready-fd";
  run->argv[count++] = number;
  run->argv[count] = NULL;
  fcntl(ready, F_SETFD, 0);
  sigprocmask(SIG_SETMASK, old_signals, NULL);
  /* execve takes strings that it does not write to. */
  static const int ours[] = {-1, -1, -1};
  eb_launch_become(attempt->runtime, (char *const *)(uintptr_t)run->argv, ours, parent, SIGTERM);
}

static eb_status start(const struct eb_supervise *run, struct attempt *attempt, const sigset_t *old_signals,
                       eb_error *error) {
  int ready[2];
  if (pipe2(ready, O_CLOEXEC)) return cannot("pipe", error);
  pid_t parent = getpid();
  attempt->child = fork();
  if (attempt->child == 0) become(run, attempt, ready[1], parent, old_signals);
  close(ready[1]);
  attempt->ready = ready[0];
  if (attempt->child > 0) return EB_OK;
  close(ready[0]);
  return cannot("fork", error);
}

/* False when nothing more can come. */
static bool take_result(struct eb_supervise *run, struct attempt *attempt) {
  char byte;
  ssize_t got = read(attempt->ready, &byte, 1);
  if (got < 0 && errno == EINTR) return true;
  if (got == 1 && !attempt->gave_result) attempt->result_ms = eb_clock_ms();
  attempt->gave_result |= got == 1;
  /* When the store is in use, the end of the process is the next occasion. */
  if (attempt->gave_result && !attempt->confirmed) confirm(run, attempt, NULL);
  return got == 1;
}

static void take_signal(struct attempt *attempt) {
  struct signalfd_siginfo info;
  ssize_t got = read(attempt->signals, &info, sizeof info);
  if (got != (ssize_t)sizeof info || info.ssi_signo == SIGCHLD) return;
  attempt->told_to_end = true;
  kill(attempt->child, (int)info.ssi_signo);
}

static bool has_ended(struct attempt *attempt) {
  return eb_launch_look(attempt->child, &attempt->ended, WNOHANG) == attempt->child;
}

/* How long until a release that runs on is well; beyond LOOK_MS where that is not waited for. */
static uint64_t until_well(const struct attempt *attempt) {
  if (!attempt->confirmed || attempt->well) return UINT64_MAX;
  uint64_t gone = eb_clock_ms() - attempt->result_ms, limit = well_ms();
  return gone < limit ? limit - gone : 0;
}

/* Until the process has ended. That is looked at whenever anything comes, and now and then when nothing does: a signal
 * that got lost leaves nobody waiting for ever. */
static void watch(struct eb_supervise *run, struct attempt *attempt) {
  struct pollfd fds[] = {{.fd = attempt->ready, .events = POLLIN}, {.fd = attempt->signals, .events = POLLIN}};
  while (!has_ended(attempt)) {
    uint64_t left = until_well(attempt);
    if (poll(fds, 2, left < LOOK_MS ? (int)left : LOOK_MS) < 0) continue;
    if (until_well(attempt) == 0) {
      forget_crashes(run, attempt, NULL);
      attempt->well = true;
    }
    if (fds[0].revents && !take_result(run, attempt)) fds[0].fd = -1;
    if (fds[1].revents) take_signal(attempt);
  }
  if (fds[0].fd >= 0 && poll(fds, 1, 0) > 0) take_result(run, attempt);
}

/* A process that its input or output ended did not crash; nor did one that was told to end. */
static bool has_crashed(const struct attempt *attempt) {
  if (attempt->told_to_end) return false;
  if (WIFSIGNALED(attempt->ended)) return true;
  int code = WEXITSTATUS(attempt->ended);
  return code != EB_OK && code != EB_INPUT && code != EB_IO;
}

/* It did not come to run: the store has damaged files of it, or the machine lacked something. */
static bool is_blameless(const struct attempt *attempt) {
  if (!WIFEXITED(attempt->ended)) return false;
  int code = WEXITSTATUS(attempt->ended);
  return code == EB_REFUSED || eb_launch_failed(code);
}

static eb_status settle(struct eb_supervise *run, struct attempt *attempt, bool *again, eb_error *error) {
  eb_status status = EB_OK;
  if (attempt->gave_result && !attempt->confirmed) status = confirm(run, attempt, error);
  if (!status && has_crashed(attempt)) return count_crash(run, attempt, is_blameless(attempt), again, error);
  if (!status && attempt->gave_result && !attempt->well) return forget_crashes(run, attempt, error);
  if (!status && attempt->raised && !attempt->gave_result) status = restore(run, attempt, error);
  return status;
}

static eb_status run_release(struct eb_supervise *run, struct attempt *attempt, const sigset_t *old_signals,
                             bool *again, int *code, eb_error *error) {
  eb_error why;
  warn(run, raise_crashes(run, attempt, &why), &why);
  eb_status status = start(run, attempt, old_signals, error);
  if (status) {
    if (attempt->raised) restore(run, attempt, NULL); /* what did not start did not crash */
    return status;
  }
  watch(run, attempt);
  close(attempt->ready);
  *code = WIFSIGNALED(attempt->ended) ? 128 + WTERMSIG(attempt->ended) : WEXITSTATUS(attempt->ended);
  warn(run, settle(run, attempt, again, &why), &why);
  return EB_OK;
}

static eb_status run_once(struct eb_supervise *run, int signals, const sigset_t *old_signals, bool *again, int *code,
                          eb_error *error) {
  struct attempt attempt = {.runtime = -1, .signals = signals};
  bool damaged;
  *again = false;
  eb_status status = choose(run, &attempt, error);
  if (status) return status;
  status = open_release(run, &attempt, &damaged, error);
  if (damaged) count_crash(run, &attempt, true, again, NULL);
  if (*again) return EB_OK;
  if (!status) status = run_release(run, &attempt, old_signals, again, code, error);
  if (attempt.runtime >= 0) close(attempt.runtime);
  return status;
}

eb_status eb_supervise(struct eb_supervise *run, int *code, eb_error *error) {
  sigset_t ours, old;
  sigemptyset(&ours);
  const int taken[] = {SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGQUIT};
  for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) sigaddset(&ours, taken[i]);
  sigprocmask(SIG_BLOCK, &ours, &old);
  int signals = signalfd(-1, &ours, SFD_CLOEXEC);
  if (signals < 0) return cannot("signalfd", error);
  bool again = true;
  eb_status status = EB_OK;
  while (!status && again) status = run_once(run, signals, &old, &again, code, error);
  close(signals);
  sigprocmask(SIG_SETMASK, &old, NULL);
  return status;
}
