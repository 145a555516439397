// Command tradewind is the MTA and its tools: `tradewind help` lists them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/dkim"
)

// command is one subcommand.
type command struct {
	name  string // "serve", or "queue list" for one of a group
	args  string // what follows the flags, for the usage line
	short string
	run   func(ctx context.Context, c *call) error
}

// call is one invocation of a command.
type call struct {
	flags  *flag.FlagSet
	args   []string
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
}

// parse reads the flags, which may stand before and after other arguments.
func (c *call) parse() error {
	var plain []string
	rest := c.args
	for {
		if err := c.flags.Parse(rest); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return err
			}
			return errUsage
		}
		if rest = c.flags.Args(); len(rest) == 0 {
			break
		}
		plain = append(plain, rest[0])
		rest = rest[1:]
	}
	c.args = plain
	return nil
}

// errUsage means that what is wrong with the flags has been printed.
var errUsage = errors.New("usage")

// usageError is a mistake in the arguments.
type usageError string

func (e usageError) Error() string { return string(e) }

// loadConfig reads the configuration that -c names.
func loadConfig(file string) (*configs.Config, error) {
	if file == "" {
		return nil, usageError("-c FILE is missing")
	}
	return configs.Load(file)
}

func commands() []command {
	return []command{
		{"serve", "-c FILE", "run the MTA", serve},
		{"check", "-c FILE", "check a configuration, reporting every problem", check},
		{"sink", "", "receive mail and count it, playing a mailbox provider", sink},
		{"inject", "", "send a load of test mail over SMTP", injectLoad},
		{"demo", "", "show the main job at a glance, then clean up", demo},
		{"queue list", "", "list destinations with waiting mail", queueList},
		{"queue show", "ID", "show a message and its history", queueShow},
		{"queue why", "ID", "say what holds a message and when it is tried next", queueWhy},
		{"queue cancel", "ID", "take a message out of the queue (dry run unless --yes)", queueCancel},
		{"queue suspend", "", "stop mail of a domain, provider, tenant, campaign or source (dry run unless --yes)", queueSuspend},
		{"queue resume", "", "let it go again, and end the holds of a provider (dry run unless --yes)", queueResume},
		{"queue suspensions", "", "list what is suspended or held, and why", queueSuspensions},
		{"queue bounce", "", "return waiting mail to its senders (dry run unless --yes)", queueBounce},
		{"queue delete", "", "take waiting mail out of the queue (dry run unless --yes)", queueDelete},
		{"queue reroute", "POOL", "send waiting mail from another pool (dry run unless --yes)", queueReroute},
		{"queue verify", "-c FILE", "check every invariant of a spool that is not in use", queueVerify},
		{"queue export", "-c FILE", "write what waits in a spool that is not in use, to move it to another node", queueExport},
		{"queue import", "-c FILE", "take over what queue export wrote (dry run unless --yes)", queueImport},
		{"events tail", "", "print events as they happen", eventsTail},
		{"top", "", "show what the engine does, anew every second", top},
		{"trace", "", "follow SMTP dialogues with mail exchangers as they happen", trace},
		{"explain address", "USER@DOMAIN", "say where mail for an address goes, and which limits hold there", explainAddress},
		{"explain reply", "\"421 4.7.28 ...\"", "say what a server's reply means and causes", explainReply},
		{"warmup plan", "", "show the coming days of warm-ups", warmupPlan},
		{"bounce parse", "FILE...", "read bounces, complaints and auto-replies", bounceParse},
		{"bounce quarantine", "list | show ID", "look at reports that were not believed", bounceQuarantine},
		{"suppression list", "", "list who must not be mailed, and why", suppressionList},
		{"suppression add", "ADDRESS...", "suppress addresses", suppressionAdd},
		{"suppression remove", "ADDRESS", "lift a suppression that is not the person's own wish", suppressionRemove},
		{"suppression import", "FILE", "suppress the addresses of a CSV or NDJSON file", suppressionImport},
		{"suppression export", "", "print the whole list as CSV or NDJSON", suppressionExport},
		{"dkim keygen", "", "make a DKIM key and print its DNS record", dkimKeygen},
		{"dkim check", "-c FILE", "compare the configured DKIM keys with DNS", dkimCheck},
		{"key create", "-c FILE", "make an API key", keyCreate},
		{"key list", "-c FILE", "list the API keys", keyList},
		{"key revoke", "-c FILE NAME", "revoke API keys by name or prefix", keyRevoke},
		{"token rotate", "-c FILE", "begin to seal return paths and links with a new key", tokenRotate},
		{"version", "", "print version and build", version},
	}
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		askForHugePages()
		shareProcessors()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// shareProcessors runs one thread more than there are CPUs. Go takes a
// processor away from a flush or a compaction of the store after 10 ms at the
// soonest, and on a small machine whoever waits for an acknowledgement feels
// each of them; the kernel shares CPUs out in finer slices.
func shareProcessors() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	}
}

// run executes a command line and returns the exit status: 0, 1 for a failure,
// 2 for a mistake in the arguments.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	cmd, rest := find(args)
	if cmd == nil {
		w, status := stdout, 0
		if len(args) > 0 && args[0] != "help" && args[0] != "--help" && args[0] != "-h" {
			w, status = stderr, 2
			fmt.Fprintf(w, "tradewind: there is no command %q\n\n", strings.Join(args[:min(2, len(args))], " "))
		}
		usage(w)
		return status
	}
	fs := flag.NewFlagSet("tradewind "+cmd.name, flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintf(fs.Output(), "%s\n\n  tradewind %s [flags] %s\n\n", cmd.short, cmd.name, cmd.args)
		fs.PrintDefaults()
	}
	err := cmd.run(ctx, &call{flags: fs, args: rest, stdin: stdin, stdout: stdout, stderr: stderr})
	var usageErr usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &usageErr):
		fmt.Fprintf(stderr, "tradewind %s: %s; see tradewind %s --help\n", cmd.name, err, cmd.name)
		return 2
	case errors.Is(err, errUsage):
		return 2
	case errors.Is(err, context.Canceled):
		return 130
	}
	fmt.Fprintf(stderr, "tradewind %s: %s\n", cmd.name, err)
	return 1
}

// find picks the command that args begin with.
func find(args []string) (*command, []string) {
	list := commands()
	for n := min(2, len(args)); n > 0; n-- {
		name := strings.Join(args[:n], " ")
		for i := range list {
			if list[i].name == name {
				return &list[i], args[n:]
			}
		}
	}
	return nil, nil
}

func usage(w io.Writer) {
	fmt.Fprintf(w, "Tradewind is a sending MTA.\n\n  tradewind COMMAND [flags]\n\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-14s %s\n", c.name, c.short)
	}
	fmt.Fprintf(w, "\nEvery command has --help.\n")
}

// version says which program this is.
func version(_ context.Context, c *call) error {
	if err := c.parse(); err != nil {
		return err
	}
	revision, dirty := "unknown", ""
	goVersion := "go"
	if info, ok := debug.ReadBuildInfo(); ok {
		goVersion = info.GoVersion
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				revision = s.Value[:min(12, len(s.Value))]
			case "vcs.modified":
				if s.Value == "true" {
					dirty = "+"
				}
			}
		}
	}
	fmt.Fprintf(c.stdout, "tradewind %s%s (%s, rsa by %s)\n", revision, dirty, goVersion, dkim.Backend())
	return nil
}
