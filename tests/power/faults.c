/* System calls that fail: runs a command, and lets chosen calls of it and of what it starts fail.
 *
 *     faults TRACE TASK FROM TO FAULT CALLS COMMAND...
 *
 * Every system call is held by a seccomp filter whose listener is this program (seccomp_unotify(2)): nothing is loaded
 * into the command, so that it may be linked in any way, and calls of the dynamic loader fail like any others. Tasks
 * (processes and threads) are numbered in the order in which they make their first call, the calls of each one from 0
 * on. Of task TASK those numbered FROM to TO fail that are in CALLS, names with commas between them, or `any`: with an
 * errno if FAULT is a number; with `half`, a write takes half of its bytes. TASK -1: of every task. TRACE is a file that
 * gets a line `TASK NUMBER NAME FLAGS` for every call, FLAGS `c` where it may make a file; `-`: none.
 *
 * Calls that a process cannot do without, or that cannot fail, are left alone and not counted. So are those of the
 * first process before its main() begins, which ignores SIGPIPE first: what the loader fails at there is not ours. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define TASKS_MAX 64
#define WRITE_MAX (1 << 20)

#define CALL(name) {SYS_##name, #name}
static const struct {
  int number;
  const char *name;
} names[] = {
    CALL(openat), CALL(read), CALL(write), CALL(close), CALL(fstat), CALL(newfstatat), CALL(lseek), CALL(pread64),
    CALL(mmap), CALL(munmap), CALL(mprotect), CALL(madvise), CALL(brk), CALL(fsync), CALL(syncfs), CALL(ftruncate),
    CALL(fchmod), CALL(mkdirat), CALL(unlinkat), CALL(renameat), CALL(renameat2), CALL(getdents64), CALL(fstatfs),
    CALL(flock), CALL(fcntl), CALL(faccessat), CALL(memfd_create), CALL(clone), CALL(clone3), CALL(execve),
    CALL(execveat), CALL(wait4), CALL(pipe2), CALL(dup2), CALL(dup3), CALL(poll), CALL(ppoll), CALL(signalfd4),
    CALL(rt_sigprocmask), CALL(rt_sigaction), CALL(kill), CALL(prctl), CALL(getppid), CALL(getpid), CALL(geteuid),
    CALL(nanosleep), CALL(clock_nanosleep), CALL(getrandom), CALL(socket), CALL(connect), CALL(getsockopt),
    CALL(sendto), CALL(recvfrom), CALL(sched_getaffinity), CALL(prlimit64), CALL(readlinkat), CALL(setsockopt),
    CALL(bind), CALL(getsockname), CALL(sendmmsg), CALL(recvmsg), CALL(uname), CALL(ioctl),
#ifdef SYS_open
    CALL(open), CALL(mkdir), CALL(unlink), CALL(rename), CALL(access), CALL(stat), CALL(readlink), CALL(fork),
    CALL(vfork),
#endif
};
static const int left_alone[] = {
    SYS_exit, SYS_exit_group, SYS_rt_sigreturn, SYS_futex, SYS_set_tid_address, SYS_set_robust_list, SYS_getppid,
    SYS_getpid, SYS_geteuid, SYS_gettid, SYS_tgkill, SYS_restart_syscall, SYS_sched_yield,
#ifdef SYS_rseq
    SYS_rseq,
#endif
#ifdef SYS_arch_prctl
    SYS_arch_prctl,
#endif
};

static struct {
  pid_t tid;
  long count;
} tasks[TASKS_MAX];
static int task_count;
static bool in_main;
static FILE *trace;
static long task, from, to;
static const char *fault, *calls;

static void die(const char *what) {
  perror(what);
  exit(125);
}

static const char *name_of(int number) {
  static char other[32];
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    if (names[i].number == number) return names[i].name;
  }
  snprintf(other, sizeof other, "call-%d", number);
  return other;
}

static bool is_left_alone(const struct seccomp_notif *call) {
  for (size_t i = 0; i < sizeof left_alone / sizeof *left_alone; i++) {
    if (left_alone[i] == call->data.nr) return true;
  }
  if (call->data.nr == SYS_write && call->data.args[0] <= STDERR_FILENO) return true; /* what is said is heard */
  in_main |= call->data.nr == SYS_rt_sigaction && call->data.args[0] == SIGPIPE;
  return !in_main;
}

static int task_of(pid_t tid) {
  for (int i = 0; i < task_count; i++) {
    if (tasks[i].tid == tid) return i;
  }
  if (task_count == TASKS_MAX) die("tasks");
  tasks[task_count].tid = tid;
  return task_count++;
}

static bool is_among(const char *name) {
  size_t length = strlen(name);
  if (strcmp(calls, "any") == 0) return true;
  for (const char *at = calls; (at = strstr(at, name)); at += length) {
    if ((at == calls || at[-1] == ',') && (at[length] == ',' || !at[length])) return true;
  }
  return false;
}

static bool may_make(const struct seccomp_notif *call) {
#ifdef SYS_open
  if (call->data.nr == SYS_open) return call->data.args[1] & O_CREAT;
#endif
  return call->data.nr == SYS_openat && call->data.args[2] & O_CREAT;
}

/* Half of a write, in the place of who wanted to write all of it. */
static void write_half(const struct seccomp_notif *call, struct seccomp_notif_resp *answer) {
  static uint8_t data[WRITE_MAX];
  size_t size = (size_t)call->data.args[2] / 2;
  int process = (int)syscall(SYS_pidfd_open, call->pid, 0);
  int fd = process < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, process, (int)call->data.args[0], 0);
  struct iovec ours = {data, size}, theirs = {(void *)(uintptr_t)call->data.args[1], size};
  if (call->data.nr == SYS_write && size && size <= sizeof data && fd >= 0 &&
      process_vm_readv((pid_t)call->pid, &ours, 1, &theirs, 1, 0) == (ssize_t)size) {
    answer->val = write(fd, data, size);
    answer->flags = 0;
  }
  if (fd >= 0) close(fd);
  if (process >= 0) close(process);
}

static void decide(const struct seccomp_notif *call, struct seccomp_notif_resp *answer) {
  if (is_left_alone(call)) return;
  int which = task_of((pid_t)call->pid);
  long number = tasks[which].count++;
  const char *name = name_of(call->data.nr);
  if (trace) fprintf(trace, "%d %ld %s %s\n", which, number, name, may_make(call) ? "c" : "-");
  if ((task >= 0 && which != task) || number < from || number > to || !is_among(name)) return;
  /* Opening what is there already works on a disk that is full. */
  if (atoi(fault) == ENOSPC && (call->data.nr == SYS_openat) && !may_make(call)) return;
  if (strcmp(fault, "half") == 0) {
    write_half(call, answer);
  } else {
    answer->flags = 0;
    answer->error = -atoi(fault);
  }
}

static void serve(int listener) {
  struct pollfd ready = {.fd = listener, .events = POLLIN};
  for (;;) {
    struct seccomp_notif call = {0};
    if (poll(&ready, 1, -1) < 0 && errno != EINTR) die("poll");
    if (ready.revents & POLLHUP) return;
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) continue; /* whoever made the call was killed */
    struct seccomp_notif_resp answer = {.id = call.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
    decide(&call, &answer);
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
  }
}

struct start {
  char **argv;
  volatile int listener;
};

/* Shares our descriptors until it executes the command, so that we have its listener, too. */
static int begin(void *context) {
  struct start *start = context;
  struct sock_filter filter[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF)};
  struct sock_fprog program = {1, filter};
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) die("no_new_privs");
  start->listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
  execv(start->argv[0], start->argv);
  _exit(125);
}

int main(int argc, char **argv) {
  static uint8_t stack[256 << 10] __attribute__((aligned(64)));
  struct start start = {argv + 7, -1};
  int state;
  if (argc < 8) return 125;
  if (strcmp(argv[1], "-") != 0 && !(trace = fopen(argv[1], "we"))) die(argv[1]);
  task = atol(argv[2]), from = atol(argv[3]), to = atol(argv[4]), fault = argv[5], calls = argv[6];
  pid_t child = clone(begin, stack + sizeof stack, CLONE_VM | CLONE_FILES | SIGCHLD, &start);
  if (child < 0) die("clone");
  while (start.listener < 0 && waitpid(child, &state, WNOHANG) == 0) sched_yield();
  if (start.listener < 0) die("seccomp");
  serve(start.listener);
  if (trace) fclose(trace);
  if (waitpid(child, &state, 0) != child) die("waitpid");
  return WIFSIGNALED(state) ? 128 + WTERMSIG(state) : WEXITSTATUS(state);
}
