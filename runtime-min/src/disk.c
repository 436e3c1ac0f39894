#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NAME_SIZE 80 /* EB_NEW and the longest name, 64 characters */
#define FOLDER_FLAGS (O_RDONLY | O_DIRECTORY | O_CLOEXEC)
#define LOCK_WAIT_MS 10000
#define LOCK_STEP_MS 50

static eb_status failed(const struct eb_folder *folder, const char *name, const char *what, eb_error *error) {
  const char *hint = errno == ENOSPC || errno == EDQUOT || errno == EFBIG
                         ? "free some space: edgebuild-run gc removes what no release needs any more"
                     : errno == EROFS || errno == EACCES || errno == EPERM
                         ? "the store must be writable; name another with --store DIR"
                         : "the store's disk may be damaged; look into the system's log";
  return eb_fail(error, EB_IO, hint, "cannot %s %s%s%s in the store: %s", what, folder->name, *name ? "/" : "", name,
                 strerror(errno));
}

static eb_status strange(const struct eb_folder *folder, const char *name, const char *what, eb_error *error) {
  return eb_fail(error, EB_REFUSED, "somebody else wrote to the store; remove it and install again",
                 "%s/%s in the store is no %s", folder->name, name, what);
}

eb_status eb_disk_sync(const struct eb_folder *folder, eb_error *error) {
  return fsync(folder->fd) == 0 ? EB_OK : failed(folder, "", "sync", error);
}

eb_status eb_disk_folder(const struct eb_folder *parent, const char *name, bool make, struct eb_folder *folder,
                         eb_error *error) {
  folder->name = name;
  folder->fd = openat(parent->fd, name, FOLDER_FLAGS | O_NOFOLLOW);
  if (folder->fd < 0 && errno == ENOENT && make) {
    if (mkdirat(parent->fd, name, 0700) && errno != EEXIST) return failed(parent, name, "make", error);
    eb_status status = eb_disk_sync(parent, error);
    if (status) return status;
    folder->fd = openat(parent->fd, name, FOLDER_FLAGS | O_NOFOLLOW);
  }
  if (folder->fd >= 0) return EB_OK;
  if (errno == ELOOP || errno == ENOTDIR) return strange(parent, name, "folder", error);
  if (errno == ENOENT) {
    return eb_fail(error, EB_IO, "edgebuild-run install FILE makes what is missing",
                   "the store has no folder %s: nothing was installed in it", name);
  }
  return failed(parent, name, "open", error);
}

/* Whoever else may write to the store could put a release into it. */
static eb_status check_owner(const char *path, int fd, eb_error *error) {
  struct stat info;
  if (fstat(fd, &info)) return eb_fail(error, EB_IO, EB_HINT_PATH, "cannot look at %s: %s", path, strerror(errno));
  if ((info.st_uid == geteuid() || info.st_uid == 0) && !(info.st_mode & 022)) return EB_OK;
  return eb_fail(error, EB_REFUSED, "chown it to this user and chmod it to 700, after a look at what is in it",
                 "others than this user may write to the store %s", path);
}

eb_status eb_disk_sync_parent(const char *path, const struct eb_folder *root, eb_error *error) {
  int fd = openat(root->fd, "..", FOLDER_FLAGS);
  /* A folder that may not be read can only be synced with all that is on its disk. */
  int failure = fd < 0 ? (errno == EACCES ? syncfs(root->fd) : -1) : fsync(fd);
  if (failure) eb_fail(error, EB_IO, EB_HINT_PATH, "cannot make the store %s: %s", path, strerror(errno));
  if (fd >= 0) close(fd);
  return failure ? EB_IO : EB_OK;
}

eb_status eb_disk_root(const char *path, bool make, struct eb_folder *folder, eb_error *error) {
  *folder = (struct eb_folder){.fd = open(path, FOLDER_FLAGS), .name = "."};
  if (folder->fd < 0 && errno == ENOENT && make) {
    if (mkdir(path, 0700) && errno != EEXIST) {
      return eb_fail(error, EB_IO, "name another with --store DIR; the folder that it lies in must exist",
                     "cannot make the store %s: %s", path, strerror(errno));
    }
    folder->fd = open(path, FOLDER_FLAGS);
  }
  if (folder->fd < 0) {
    return eb_fail(error, EB_IO, "name the store with --store DIR; edgebuild-run install FILE makes one",
                   "cannot open the store %s: %s", path, strerror(errno));
  }
  return check_owner(path, folder->fd, error);
}

void eb_disk_close(struct eb_folder *folder) {
  if (folder->fd >= 0) close(folder->fd);
  folder->fd = -1;
}

eb_status eb_disk_open(const struct eb_folder *folder, const char *name, int *fd, uint64_t *size, eb_error *error) {
  struct stat info;
  *size = 0;
  /* O_NONBLOCK: nobody may make us wait by putting a FIFO there. */
  *fd = openat(folder->fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (*fd < 0) {
    if (errno == ENOENT) return EB_OK;
    return errno == ELOOP ? strange(folder, name, "regular file", error) : failed(folder, name, "open", error);
  }
  eb_status status = fstat(*fd, &info)        ? failed(folder, name, "open", error)
                     : !S_ISREG(info.st_mode) ? strange(folder, name, "regular file", error)
                                              : EB_OK;
  if (status) {
    close(*fd);
    *fd = -1;
    return status;
  }
  *size = (uint64_t)info.st_size;
  return EB_OK;
}

eb_status eb_disk_read(const struct eb_folder *folder, const char *name, void *buffer, size_t limit, size_t *size,
                       bool *found, eb_error *error) {
  int fd;
  uint64_t bytes;
  *size = 0;
  *found = false;
  eb_status status = eb_disk_open(folder, name, &fd, &bytes, error);
  if (status || fd < 0) return status;
  while (*size <= limit) {
    ssize_t got = read(fd, (uint8_t *)buffer + *size, limit + 1 - *size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) status = failed(folder, name, "read", error);
    if (got <= 0) break;
    *size += (size_t)got;
  }
  close(fd);
  if (!status && *size > limit) {
    return eb_fail(error, EB_REFUSED, "somebody else wrote to the store; remove it and install again",
                   "%s/%s in the store is over %zu bytes", folder->name, name, limit);
  }
  *found = true;
  return status;
}

eb_status eb_disk_append(const struct eb_folder *folder, const char *name, int fd, const void *data, size_t size,
                         eb_error *error) {
  for (const uint8_t *at = data; size;) {
    ssize_t written = write(fd, at, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return failed(folder, name, "write", error);
    at += written;
    size -= (size_t)written;
  }
  return EB_OK;
}

static eb_status put_new(const struct eb_folder *folder, const char *new_name, const char *name, int fd,
                         eb_bytes content, mode_t mode, eb_error *error) {
  eb_status status = eb_disk_append(folder, new_name, fd, content.data, content.size, error);
  if (status) return status;
  if (fchmod(fd, mode) || fsync(fd)) return failed(folder, new_name, "write", error);
  if (renameat(folder->fd, new_name, folder->fd, name)) return failed(folder, name, "write", error);
  return eb_disk_sync(folder, error);
}

eb_status eb_disk_put(const struct eb_folder *folder, const char *name, eb_bytes content, mode_t mode,
                      eb_error *error) {
  char new_name[NAME_SIZE];
  snprintf(new_name, sizeof new_name, EB_NEW "%s", name);
  unlinkat(folder->fd, new_name, 0);
  int fd = openat(folder->fd, new_name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd < 0) return failed(folder, new_name, "write", error);
  eb_status status = put_new(folder, new_name, name, fd, content, mode, error);
  close(fd);
  if (status) unlinkat(folder->fd, new_name, 0);
  return status;
}

static int open_to_write(const struct eb_folder *folder, const char *name, uint64_t *size) {
  struct stat info;
  int fd = openat(folder->fd, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
  if (fd >= 0 && fstat(fd, &info) == 0 && S_ISREG(info.st_mode)) {
    *size = (uint64_t)info.st_size;
    return fd;
  }
  if (fd >= 0) close(fd);
  return -1;
}

eb_status eb_disk_begin(const struct eb_folder *folder, const char *name, int *fd, uint64_t *size, eb_error *error) {
  *fd = open_to_write(folder, name, size);
  if (*fd >= 0) return EB_OK;
  /* What is no file, or may not be written to, is replaced by one. */
  unlinkat(folder->fd, name, 0);
  *fd = open_to_write(folder, name, size);
  return *fd >= 0 ? EB_OK : failed(folder, name, "write", error);
}

eb_status eb_disk_truncate(const struct eb_folder *folder, const char *name, int fd, uint64_t size, eb_error *error) {
  bool done = ftruncate(fd, (off_t)size) == 0 && lseek(fd, (off_t)size, SEEK_SET) >= 0;
  return done ? EB_OK : failed(folder, name, "truncate", error);
}

eb_status eb_disk_finish(const struct eb_folder *from, const char *name, int fd, const struct eb_folder *to,
                         eb_error *error) {
  if (fchmod(fd, 0444) || fsync(fd)) return failed(from, name, "write", error);
  if (renameat(from->fd, name, to->fd, name)) return failed(to, name, "write", error);
  return eb_disk_sync(to, error);
}

eb_status eb_disk_remove(const struct eb_folder *folder, const char *name, eb_error *error) {
  if (unlinkat(folder->fd, name, 0) == 0 || errno == ENOENT) return EB_OK;
  return failed(folder, name, "remove", error);
}

bool eb_disk_has(const struct eb_folder *folder, const char *name) {
  return faccessat(folder->fd, name, F_OK, 0) == 0;
}

/* struct linux_dirent64, which no header of glibc 2.28 has. */
struct entry {
  uint64_t inode;
  int64_t next;
  uint16_t size;
  uint8_t type;
  char name[];
};

static eb_status visit_all(const uint8_t *entries, size_t size,
                           eb_status (*visit)(void *context, const char *name, eb_error *), void *context,
                           eb_error *error) {
  for (size_t at = 0; at < size;) {
    const struct entry *entry = (const void *)(entries + at);
    at += entry->size;
    if (strcmp(entry->name, ".") == 0 || strcmp(entry->name, "..") == 0) continue;
    eb_status status = visit(context, entry->name, error);
    if (status) return status;
  }
  return EB_OK;
}

eb_status eb_disk_list(const struct eb_folder *folder, eb_status (*visit)(void *context, const char *name, eb_error *),
                       void *context, eb_error *error) {
  _Alignas(8) uint8_t entries[8192];
  if (folder->fd < 0) return EB_OK; /* it is not there */
  if (lseek(folder->fd, 0, SEEK_SET) < 0) return failed(folder, "", "list", error);
  for (;;) {
    long got = syscall(SYS_getdents64, folder->fd, entries, sizeof entries);
    if (got < 0) return failed(folder, "", "list", error);
    if (got == 0) return EB_OK;
    eb_status status = visit_all(entries, (size_t)got, visit, context, error);
    if (status) return status;
  }
}

eb_status eb_disk_room(const struct eb_folder *folder, uint64_t *bytes, eb_error *error) {
  struct statvfs info;
  if (fstatvfs(folder->fd, &info)) return failed(folder, "", "look at", error);
  *bytes = (uint64_t)info.f_bavail * info.f_frsize;
  return EB_OK;
}

eb_status eb_disk_lock(const struct eb_folder *folder, const char *name, int *fd, eb_error *error) {
  static const struct timespec step = {.tv_nsec = LOCK_STEP_MS * 1000000L};
  *fd = openat(folder->fd, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
  if (*fd < 0 && errno == EROFS) {
    *fd = openat(folder->fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (*fd < 0 && errno == ENOENT) return EB_OK;
  }
  if (*fd < 0) return failed(folder, name, "open", error);
  for (int waited = 0; flock(*fd, LOCK_EX | LOCK_NB); waited += LOCK_STEP_MS) {
    if (errno == EINTR) continue;
    eb_status status = errno != EWOULDBLOCK ? failed(folder, name, "lock", error) : EB_OK;
    if (!status && waited >= LOCK_WAIT_MS) {
      status = eb_fail(error, EB_IO, "let the other edgebuild-run finish, then try again",
                       "the store is in use: another process installs into it or removes from it");
    }
    if (status) {
      close(*fd);
      *fd = -1;
      return status;
    }
    nanosleep(&step, NULL);
  }
  return EB_OK;
}
