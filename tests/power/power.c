/* A disk that loses its power: LD_PRELOAD into edgebuild-run.
 *
 * Every call that changes what lies in the store POWER_STORE, or makes it durable, is counted and, with POWER_JOURNAL,
 * recorded. With POWER_CUT=N the process is ended by SIGKILL before call N (from 0 on), with POWER_HALF=1 in the middle of it
 * if it is a write. With POWER_DEAF=1 nothing is made durable, though it says so. Only the process that was started first
 * is concerned, not those that it starts (the canary, a release). All of them lose root's right to write to any file, as
 * no device should depend on it.
 *
 * A record: name TAB ok|failed TAB path TAB new path or - TAB number TAB size LF, and so many bytes of data. Paths are
 * relative to the store; the number is an offset, a size or a mode. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define OUTSIDE NULL

struct call {
  const char *name, *path, *other;
  long long number;
  const void *data;
  size_t size;
};

static const char *store;
static pid_t owner;
static int journal = -1;
static long cut = -1, count;
static bool half, deaf;

static void drop_capabilities(void) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct data[2] = {{0}, {0}};
  if (syscall(SYS_capget, &header, data)) return;
  const unsigned dropped = 1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH;
  data[0].effective &= ~dropped;
  data[0].permitted &= ~dropped;
  syscall(SYS_capset, &header, data);
}

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("POWER_JOURNAL"), *number = getenv("POWER_CUT");
  drop_capabilities();
  if (!getenv("POWER_STORE") || getenv("POWER_CHILD")) return;
  setenv("POWER_CHILD", "1", 1);
  store = getenv("POWER_STORE");
  owner = getpid();
  if (path) journal = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (number) cut = atol(number);
  half = getenv("POWER_HALF") != NULL;
  deaf = getenv("POWER_DEAF") != NULL;
}

/* Relative to the store; `..` for the folder that it lies in, OUTSIDE for anything else. */
static const char *inside(const char *path) {
  size_t length = strlen(store);
  const char *slash = strrchr(store, '/');
  if (strncmp(path, store, length) == 0 && path[length] == '/') return path + length + 1;
  if (strcmp(path, store) == 0) return ".";
  return (size_t)(slash - store) == strlen(path) && strncmp(path, store, strlen(path)) == 0 ? ".." : OUTSIDE;
}

static const char *path_of(int fd, const char *name, char path[2 * PATH_MAX]) {
  char link[64];
  if (owner != getpid()) return OUTSIDE;
  if (name && name[0] == '/') return inside(name);
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(fd == AT_FDCWD ? "/proc/self/cwd" : link, path, PATH_MAX - 1);
  if (length < 0) return OUTSIDE;
  path[length] = 0;
  if (name) snprintf(path + length, 2 * PATH_MAX - (size_t)length, "/%s", name);
  return inside(path);
}

static void die(void) {
  for (;;) kill(getpid(), SIGKILL);
}

static void put(const void *data, size_t size) {
  if (journal >= 0 && syscall(SYS_write, journal, data, size) != (ssize_t)size) abort();
}

static void record(const struct call *call, bool failed) {
  char line[2 * PATH_MAX];
  int error = errno;
  int length = snprintf(line, sizeof line, "%s\t%s\t%s\t%s\t%lld\t%zu\n", call->name, failed ? "failed" : "ok",
                        call->path, call->other ? call->other : "-", call->number, failed ? 0 : call->size);
  put(line, (size_t)length);
  if (!failed) put(call->data, call->size);
  errno = error;
}

static void meet_cut(const struct call *call) {
  (void)call;
  if (count++ == cut && !half) die();
}

static long finish(const struct call *call, long result) {
  record(call, result < 0);
  return result;
}

static int open_any(const char *name, int folder, const char *path, int flags, mode_t mode) {
  char buffer[2 * PATH_MAX];
  const char *at = store && flags & (O_CREAT | O_TRUNC) ? path_of(folder, path, buffer) : OUTSIDE;
  struct call call = {.name = name, .path = at, .number = (flags & O_TRUNC ? 01000000 : 0) | (long long)mode};
  if (!at) return (int)syscall(SYS_openat, folder, path, flags, mode);
  meet_cut(&call);
  return (int)finish(&call, syscall(SYS_openat, folder, path, flags, mode));
}

#define MODE_OF(flags, mode)             \
  do {                                   \
    va_list list;                        \
    va_start(list, flags);               \
    if (flags & O_CREAT) mode = va_arg(list, mode_t); \
    va_end(list);                        \
  } while (0)

int openat(int folder, const char *path, int flags, ...) {
  mode_t mode = 0;
  MODE_OF(flags, mode);
  return open_any("open", folder, path, flags, mode);
}

int open(const char *path, int flags, ...) {
  mode_t mode = 0;
  MODE_OF(flags, mode);
  return open_any("open", AT_FDCWD, path, flags, mode);
}

ssize_t write(int fd, const void *data, size_t size) {
  char buffer[2 * PATH_MAX];
  const char *at = store ? path_of(fd, NULL, buffer) : OUTSIDE;
  if (!at) return syscall(SYS_write, fd, data, size);
  struct call call = {"write", at, NULL, lseek(fd, 0, SEEK_CUR), data, size};
  bool halves = half && count == cut && size > 1;
  meet_cut(&call);
  if (halves) call.size = size / 2;
  ssize_t written = syscall(SYS_write, fd, data, call.size);
  if (written >= 0) call.size = (size_t)written;
  finish(&call, written);
  if (halves) die();
  return written;
}

static int on_file(const char *name, int fd, long number, long long argument, bool has_argument) {
  char buffer[2 * PATH_MAX];
  struct call call = {.name = name, .path = store ? path_of(fd, NULL, buffer) : OUTSIDE, .number = argument};
  if (call.path) meet_cut(&call);
  long result = has_argument ? syscall(number, fd, argument) : syscall(number, fd);
  return (int)(call.path ? finish(&call, result) : result);
}

int fsync(int fd) {
  return deaf ? 0 : on_file("fsync", fd, SYS_fsync, 0, false);
}

int syncfs(int fd) {
  return deaf ? 0 : on_file("syncfs", fd, SYS_syncfs, 0, false);
}

int ftruncate(int fd, off_t size) {
  return on_file("ftruncate", fd, SYS_ftruncate, size, true);
}

int fchmod(int fd, mode_t mode) {
  return on_file("fchmod", fd, SYS_fchmod, mode, true);
}

static int make_folder(int folder, const char *path, mode_t mode) {
  char buffer[2 * PATH_MAX];
  struct call call = {.name = "mkdir", .path = store ? path_of(folder, path, buffer) : OUTSIDE, .number = mode};
  if (call.path) meet_cut(&call);
  long result = syscall(SYS_mkdirat, folder, path, mode);
  return (int)(call.path ? finish(&call, result) : result);
}

int mkdirat(int folder, const char *path, mode_t mode) {
  return make_folder(folder, path, mode);
}

int mkdir(const char *path, mode_t mode) {
  return make_folder(AT_FDCWD, path, mode);
}

int unlinkat(int folder, const char *path, int flags) {
  char buffer[2 * PATH_MAX];
  struct call call = {.name = "unlink", .path = store ? path_of(folder, path, buffer) : OUTSIDE};
  if (call.path) meet_cut(&call);
  long result = syscall(SYS_unlinkat, folder, path, flags);
  return (int)(call.path ? finish(&call, result) : result);
}

int renameat(int from, const char *old_path, int to, const char *new_path) {
  char buffer[2 * PATH_MAX], other[2 * PATH_MAX];
  struct call call = {.name = "rename", .path = store ? path_of(from, old_path, buffer) : OUTSIDE};
  call.other = call.path ? path_of(to, new_path, other) : OUTSIDE;
  if (call.path) meet_cut(&call);
  long result = syscall(SYS_renameat2, from, old_path, to, new_path, 0);
  return (int)(call.path ? finish(&call, result) : result);
}
