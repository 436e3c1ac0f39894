#include "options.h"

#include <string.h>

#include "state.h"

const char eb_options_help[] =
    "usage: edgebuild-run BUNDLE --input FILE|- [options]\n"
    "       edgebuild-run BUNDLE --check | --verify\n"
    "       edgebuild-run install FILE|- | status [NAME] | rollback NAME | gc     [--store DIR]\n"
    "       edgebuild-run follow URL|DIR [--every SECONDS]                        [--store DIR]\n"
    "       edgebuild-run run NAME --input FILE|- [options]                       [--store DIR]\n"
    "\n"
    "Verifies a bundle that edgebuild made and runs its function on every frame of the input. Prints one JSON object "
    "a\n"
    "frame on standard output: {\"seq\":0,\"outputs\":{\"NAME\":VALUE},\"latency_us\":12.3}; tensors are flat lists "
    "in\n"
    "row-major order. A summary follows on standard error.\n"
    "\n"
    "  --input FILE|-     frames: .y4m, raw RGB, .ppm or .npy; - is standard input\n"
    "  --input NAME=FILE  the same for one of several inputs; give the option once for each\n"
    "  --format FORMAT    y4m, rgb, ppm or npy; otherwise the first bytes tell, or the ending .rgb\n"
    "  --size WxH         frame size of raw RGB (default: the model's)\n"
    "  --trust FILE       public keys to trust; default $EDGEBUILD_TRUST, ~/.config/edgebuild/trust,\n"
    "                     /etc/edgebuild/trust\n"
    "  --threads N        threads, 1 to 64 (default: the processor's cores, at most 4)\n"
    "  --repeat N         run each frame N times; latency_us is the median\n"
    "  --no-pace          do not wait for the ticks of a timer trigger\n"
    "  --profile          print the least time of each operator on standard error\n"
    "  --check            run the golden inputs of the bundle and compare the outputs byte for byte\n"
    "  --verify           verify the bundle and run nothing\n"
    "  --json             summary and errors as JSON\n"
    "  --version, --help\n"
    "\n"
    "A store keeps what is installed on this device; a release becomes current in one step, and the previous one "
    "stays.\n"
    "\n"
    "  install FILE|-     verify a bundle or a delta, try it, make it current; what arrived of it before is not "
    "written\n"
    "                     again\n"
    "  follow URL|DIR     read release.json there, install by a delta or whole, go on where a bad line broke off;\n"
    "                     --every SECONDS: again and again; --attempts N: in a row without a byte (8); --target NAME:\n"
    "                     the kind of device, for a first installation; --name NAME: of no other function.\n"
    "                     https:// needs curl\n"
    "  status [NAME]      what is installed\n"
    "  rollback NAME      make the previous release current again; --bad: and never install the other one again\n"
    "  gc                 remove what no current or previous release needs\n"
    "  run NAME           run the current release; after three crashes in a row the previous one is current again\n"
    "  --store DIR        the store; default $EDGEBUILD_STORE, else /var/lib/edgebuild\n"
    "  --release ID       with --check, --verify or --input: a release of the store, in place of BUNDLE\n"
    "\n"
    "exit code: 0 success, 1 wrong argument or input, 2 bundle refused, 3 check failed, 4 the machine cannot run it,\n"
    "5 reading or writing failed, 6 not enough memory; run: that of the release, or 128 and the signal that ended it\n";

static eb_status usage(eb_error *error, const char *what, const char *which) {
  return eb_fail(error, EB_INPUT, "edgebuild-run --help lists the options", "%s%s", what, which);
}

static bool parse_number(const char *text, char end, uint32_t max, uint32_t *number, const char **rest) {
  uint64_t value = 0;
  const char *at = text;
  for (; *at >= '0' && *at <= '9' && value <= max; at++) value = value * 10 + (uint64_t)(*at - '0');
  if (at == text || *at != end || value < 1 || value > max) return false;
  *number = (uint32_t)value;
  if (rest) *rest = at + 1;
  return true;
}

static bool parse_size(const char *text, struct eb_options *options) {
  const char *height;
  return parse_number(text, 'x', 1u << 20, &options->width, &height) &&
         parse_number(height, 0, 1u << 20, &options->height, NULL);
}

static bool set_flag(const char *name, struct eb_options *options) {
  const struct {
    const char *name;
    bool *flag;
  } flags[] = {
      {"--json", &options->json},       {"--check", &options->check},     {"--verify", &options->verify},
      {"--no-pace", &options->no_pace}, {"--profile", &options->profile}, {"--version", &options->version},
      {"--help", &options->help},       {"-h", &options->help},           {"--bad", &options->bad},
  };
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
    if (strcmp(flags[i].name, name) != 0) continue;
    *flags[i].flag = true;
    return true;
  }
  return false;
}

static eb_status set_value(const char *name, const char *value, struct eb_options *options, eb_error *error) {
  bool valid = true;
  if (strcmp(name, "--input") == 0) {
    if (options->input_count == EB_INPUTS_MAX) return usage(error, "too many inputs", "");
    options->input[options->input_count++] = value;
  } else if (strcmp(name, "--trust") == 0) {
    options->trust = value;
  } else if (strcmp(name, "--store") == 0) {
    options->store = value;
    valid = *value;
  } else if (strcmp(name, "--release") == 0) {
    options->release = value;
    valid = eb_is_id(value);
  } else if (strcmp(name, "--ready-fd") == 0) {
    valid = parse_number(value, 0, 1u << 20, &options->ready_fd, NULL);
  } else if (strcmp(name, "--name") == 0) {
    options->name = value;
    valid = eb_is_name(value);
  } else if (strcmp(name, "--target") == 0) {
    options->target = value;
    valid = eb_is_name(value);
  } else if (strcmp(name, "--every") == 0) {
    valid = parse_number(value, 0, 30 * 86400, &options->every, NULL);
  } else if (strcmp(name, "--attempts") == 0) {
    valid = parse_number(value, 0, 1000, &options->attempts, NULL);
  } else if (strcmp(name, "--repeat") == 0) {
    valid = parse_number(value, 0, 100000000, &options->repeat, NULL);
  } else if (strcmp(name, "--threads") == 0) {
    valid = parse_number(value, 0, EB_THREADS_MAX, &options->threads, NULL);
  } else if (strcmp(name, "--format") == 0) {
    options->format = eb_format_of(value);
    valid = options->format != EB_FORMAT_DETECT;
  } else if (strcmp(name, "--size") == 0) {
    valid = parse_size(value, options);
  } else {
    return usage(error, "unknown option ", name);
  }
  if (valid) return EB_OK;
  return eb_fail(error, EB_INPUT, "edgebuild-run --help lists the options", "%s: wrong value %s", name, value);
}

/* Commands, and what they are given: 0 nothing, 1 perhaps something, 2 something. */
static const struct command {
  const char *name;
  int operand;
  const char *missing;
} commands[] = {
    [EB_COMMAND_INSTALL] = {"install", 2, "install: no bundle is given"},
    [EB_COMMAND_STATUS] = {"status", 1, NULL},
    [EB_COMMAND_ROLLBACK] = {"rollback", 2, "rollback: no NAME is given"},
    [EB_COMMAND_GC] = {"gc", 0, NULL},
    [EB_COMMAND_RUN] = {"run", 2, "run: no NAME is given"},
    [EB_COMMAND_FOLLOW] = {"follow", 2, "follow: no URL or folder is given"},
};

static enum eb_command command_of(const char *word) {
  for (int i = EB_COMMAND_INSTALL; i <= EB_COMMAND_FOLLOW; i++) {
    if (strcmp(commands[i].name, word) == 0) return (enum eb_command)i;
  }
  return EB_COMMAND_NONE;
}

static bool runs_something(const struct eb_options *options) {
  return options->input_count || options->check || options->verify || options->profile || options->no_pace ||
         options->format != EB_FORMAT_DETECT || options->width || options->threads || options->repeat != 1;
}

static eb_status check_command(const struct eb_options *options, eb_error *error) {
  const struct command *command = &commands[options->command];
  if (!options->operand && command->operand == 2) return usage(error, command->missing, "");
  if (options->operand && command->operand == 0) return usage(error, "gc takes no name: ", options->operand);
  if (options->release) return usage(error, "--release goes without a command, not with ", command->name);
  if (options->bad && options->command != EB_COMMAND_ROLLBACK) return usage(error, "--bad belongs to rollback", "");
  if (options->command != EB_COMMAND_FOLLOW &&
      (options->name || options->target || options->every || options->attempts)) {
    return usage(error, "--name, --target, --every and --attempts belong to follow, not to ", command->name);
  }
  if (options->command != EB_COMMAND_RUN && runs_something(options)) {
    return usage(error, "this command runs no frames and takes none of run's options: ", command->name);
  }
  return EB_OK;
}

static eb_status check_options(const struct eb_options *options, eb_error *error) {
  if (options->help || options->version) return EB_OK;
  if (options->check && options->verify) return usage(error, "--check and --verify exclude each other", "");
  if ((options->check || options->verify) && options->input_count) {
    return usage(error, "--check and --verify take no --input", "");
  }
  if (options->command) return check_command(options, error);
  if (options->bad) return usage(error, "--bad belongs to rollback", "");
  if (options->name || options->target || options->every || options->attempts) {
    return usage(error, "--name, --target, --every and --attempts belong to follow", "");
  }
  if (options->release) {
    return options->operand
               ? usage(error, "--release takes the place of a bundle; there is one more: ", options->operand)
               : EB_OK;
  }
  if (options->store)
    return usage(error, "--store needs a command (install, follow, status, rollback, gc, run) or --release ID", "");
  return options->operand ? EB_OK : usage(error, "no bundle is given", "");
}

eb_status eb_options_parse(int argc, char **argv, struct eb_options *options, eb_error *error) {
  *options = (struct eb_options){.repeat = 1};
  for (int i = 1; i < argc; i++) {
    /* Errors of the command line itself follow --json wherever it stands. */
    if (strcmp(argv[i], "--json") == 0) options->json = true;
  }
  if (argc > 1) options->command = command_of(argv[1]);
  for (int i = options->command ? 2 : 1; i < argc; i++) {
    const char *argument = argv[i];
    if (set_flag(argument, options)) continue;
    eb_status status = EB_OK;
    if (argument[0] == '-' && argument[1]) {
      if (i + 1 == argc) return usage(error, "unknown option, or one without its value: ", argument);
      status = set_value(argument, argv[++i], options, error);
    } else if (options->operand) {
      status = usage(error, options->command ? "one argument too many: " : "more than one bundle is given: ", argument);
    } else {
      options->operand = argument;
      options->operand_index = i;
    }
    if (status) return status;
  }
  return check_options(options, error);
}
