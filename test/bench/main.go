// Command bench measures Tradewind beside Postfix and a bare SMTP receiver, all
// on loopback, in one go: `make bench`. Source and sink run in this process, each
// relay in processes and directories of its own, so that what a relay costs is
// what the kernel says about its processes and nothing else.
//
// The relays alternate, round by round, and every round begins with an empty
// store; a table gives the median of the rounds with the least and the most, and
// ratios are taken within one round, so that whatever else this machine does
// hits both sides of a ratio alike. A run in which a message is lost, or
// delivered twice, fails.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	binary  string
	other   string
	out     string
	doc     string
	work    string
	backlog string
	rounds  int
	scale   float64
	quick   bool
	short   bool
	long    bool
	stall   time.Duration
	only    string
	require bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (*options, error) {
	var o options
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.StringVar(&o.binary, "tradewind", "bin/tradewind", "the `binary` to measure")
	fs.StringVar(&o.other, "against", "", "another build of it, measured as a relay of its own")
	fs.StringVar(&o.out, "out", "", "`directory` for the table, the plots and the figures as JSON")
	fs.StringVar(&o.doc, "doc", "", "a Markdown `page` whose marked region is replaced by the table; the plots then belong beside it")
	fs.StringVar(&o.work, "work", "", "`directory` for the stores of the relays: on the disk that is to be measured (default: a temporary one)")
	fs.StringVar(&o.backlog, "backlog", "", "a `data_dir` with mail that is not due, made before, in place of the one it makes: measures delivery beside it, and leaves the mail there")
	fs.IntVar(&o.rounds, "rounds", 3, "rounds of each cell")
	fs.Float64Var(&o.scale, "scale", 1, "multiplies the number of messages")
	fs.BoolVar(&o.quick, "quick", false, "only what the claims are about: some 5 minutes")
	fs.BoolVar(&o.short, "short", false, "every cell once, with few messages: checks that it runs and that nothing is lost, and measures nothing")
	fs.BoolVar(&o.long, "long", false, "also a million messages, and 100,000 domains a million times: half an hour more")
	fs.DurationVar(&o.stall, "stall", 20*time.Second, "how long to watch for stalls at half of the peak load")
	fs.StringVar(&o.only, "only", "", "run only the cells and scenarios of these `names`, which may hold *, separated by commas")
	fs.BoolVar(&o.require, "require-postfix", false, "fail, instead of going on without it, when Postfix cannot be run")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if o.rounds < 1 || o.scale <= 0 {
		return nil, errors.New("rounds and scale must be positive")
	}
	if o.short {
		o.rounds, o.scale, o.stall = 1, 0.01, time.Second
	}
	return &o, nil
}

// wants reports whether the cell or scenario called name is to run.
func (o *options) wants(name string) bool {
	if o.only == "" {
		return true
	}
	for word := range strings.SplitSeq(o.only, ",") {
		if ok, err := path.Match(word, name); err == nil && ok {
			return true
		}
	}
	return false
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.binary, err = filepath.Abs(o.binary); err != nil {
		return err
	}
	if _, err := os.Stat(o.binary); err != nil {
		return fmt.Errorf("no binary to measure (make build makes it): %w", err)
	}
	if o.work == "" {
		if o.work, err = os.MkdirTemp("", "tradewind-bench-"); err != nil {
			return err
		}
		defer os.RemoveAll(o.work)
	}
	// Postfix runs as a user of its own.
	if err := os.Chmod(o.work, 0o755); err != nil {
		return err
	}
	r := &report{options: o, machine: examine(ctx, o)}
	relays := []relay{&tradewind{name: nameTradewind, binary: o.binary, dir: filepath.Join(o.work, "tradewind")}}
	if o.other != "" {
		relays = append(relays, &tradewind{name: "other", binary: o.other, dir: filepath.Join(o.work, "other")})
	}
	switch p, err := newPostfix(filepath.Join(o.work, "postfix")); {
	case err == nil:
		relays = append(relays, p)
		r.machine.Postfix, r.postfixMain, r.postfixMaster = p.version, p.mainCF("127.0.0.1:SINK"), p.masterCF("PORT")
	case o.require:
		return err
	default:
		r.note("Postfix was not measured: %v.", err)
	}
	relays = append(relays, &bare{binary: o.binary})
	if err := r.matrix(ctx, relays); err != nil {
		return err
	}
	if err := r.scenarios(ctx); err != nil {
		return err
	}
	r.machine.finish()
	return r.write()
}
