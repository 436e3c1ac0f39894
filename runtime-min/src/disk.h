/* Every write to a store: nothing else creates, changes or removes a file of it. Names are validated by the callers (an
 * ID, a name of SPEC 2, a constant), never paths; no symbolic link is followed inside a store. */
#ifndef EB_DISK_H
#define EB_DISK_H

#include <stdbool.h>
#include <sys/types.h>

#include "status.h"

#define EB_NEW ".new-" /* what the name of a file starts with until it is complete */

struct eb_folder {
  int fd;           /* -1: not open */
  const char *name; /* for messages */
};

/* Opens a folder inside `parent`; with `make` it is there afterwards, and stays there when the power fails. */
eb_status eb_disk_folder(const struct eb_folder *parent, const char *name, bool make, struct eb_folder *folder,
                         eb_error *error);

/* The same for the store itself, whose path is the user's; it stays there after eb_disk_sync_parent. */
eb_status eb_disk_root(const char *path, bool make, struct eb_folder *folder, eb_error *error);
eb_status eb_disk_sync_parent(const char *path, const struct eb_folder *root, eb_error *error);
bool eb_disk_has(const struct eb_folder *folder, const char *name);

void eb_disk_close(struct eb_folder *folder);

/* A regular file to read; *fd is -1 where there is none. */
eb_status eb_disk_open(const struct eb_folder *folder, const char *name, int *fd, uint64_t *size, eb_error *error);

/* A whole file of at most `limit` bytes into buffer[limit + 1]; *found is false where there is none. */
eb_status eb_disk_read(const struct eb_folder *folder, const char *name, void *buffer, size_t limit, size_t *size,
                       bool *found, eb_error *error);

/* A file appears, or takes the place of one, complete and durable. */
eb_status eb_disk_put(const struct eb_folder *folder, const char *name, eb_bytes content, mode_t mode, eb_error *error);

/* A file that is written in parts; what it had stays, behind which it goes on. */
eb_status eb_disk_begin(const struct eb_folder *folder, const char *name, int *fd, uint64_t *size, eb_error *error);
eb_status eb_disk_truncate(const struct eb_folder *folder, const char *name, int fd, uint64_t size, eb_error *error);
eb_status eb_disk_append(const struct eb_folder *folder, const char *name, int fd, const void *data, size_t size,
                         eb_error *error);

/* It is complete: read-only, durable, and in its place. */
eb_status eb_disk_finish(const struct eb_folder *from, const char *name, int fd, const struct eb_folder *to,
                         eb_error *error);

/* Removing what is not there is no error; durable after the next eb_disk_sync. */
eb_status eb_disk_remove(const struct eb_folder *folder, const char *name, eb_error *error);
eb_status eb_disk_sync(const struct eb_folder *folder, eb_error *error);

/* Calls `visit` for each entry; what it removes is left out or not. */
eb_status eb_disk_list(const struct eb_folder *folder, eb_status (*visit)(void *context, const char *name, eb_error *),
                       void *context, eb_error *error);

/* Bytes that this user may still write. */
eb_status eb_disk_room(const struct eb_folder *folder, uint64_t *bytes, eb_error *error);

/* A lock that one process has at a time; waits 10 s. Closing *fd gives it back; it is -1 where the disk is read-only
 * and nobody locked it before, so that nobody can change anything. */
eb_status eb_disk_lock(const struct eb_folder *folder, const char *name, int *fd, eb_error *error);

#endif
