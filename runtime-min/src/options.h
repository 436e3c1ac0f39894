/* The command line of edgebuild-run. */
#ifndef EB_OPTIONS_H
#define EB_OPTIONS_H

#include "source.h"

#define EB_INPUTS_MAX 64

enum eb_command {
  EB_COMMAND_NONE, /* a bundle, or a release of a store, is run */
  EB_COMMAND_INSTALL,
  EB_COMMAND_STATUS,
  EB_COMMAND_ROLLBACK,
  EB_COMMAND_GC,
  EB_COMMAND_RUN,
  EB_COMMAND_FOLLOW,
};

struct eb_options {
  enum eb_command command;
  const char *operand; /* of the command: FILE or NAME; without one the bundle; NULL: none was given */
  int operand_index;   /* where it stands */
  const char *store;   /* NULL: the default */
  const char *release; /* ID in the store */
  uint32_t ready_fd;   /* 0: none; a byte is written to it behind the first result */
  bool bad;
  const char *name;    /* follow: of what; NULL: whatever is published there */
  const char *target;  /* follow: for a first installation */
  uint32_t every;      /* follow: seconds; 0: once */
  uint32_t attempts;   /* follow: in a row; 0: the default */
  const char *trust;
  const char *input[EB_INPUTS_MAX]; /* FILE or NAME=FILE */
  uint32_t input_count;
  uint32_t repeat;
  uint32_t threads; /* 0: choose */
  uint32_t width;   /* 0: the model's */
  uint32_t height;
  enum eb_format format;
  bool json;
  bool check;
  bool verify;
  bool no_pace;
  bool profile;
  bool version;
  bool help;
};

eb_status eb_options_parse(int argc, char **argv, struct eb_options *options, eb_error *error);

extern const char eb_options_help[];

#endif
