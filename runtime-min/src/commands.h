/* The commands that work on a store: install, status, rollback, gc, run. */
#ifndef EB_COMMANDS_H
#define EB_COMMANDS_H

#include "cpu.h"
#include "json.h"
#include "options.h"

/* What a command is given. */
struct eb_commands {
  const struct eb_options *options;
  int argc;
  char **argv;
  struct eb_cpu cpu;
  struct eb_json *out, *err;
  int code; /* of the process that `run` ran */
};

eb_status eb_command_run(struct eb_commands *commands, eb_error *error);

/* The option, else the variable, else the system's. */
const char *eb_store_path(const struct eb_options *options);

#endif
