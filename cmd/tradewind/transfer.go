package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/tradewind-mta/tradewind/event"
	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/queue"
	"github.com/tradewind-mta/tradewind/store"
)

// withSpool opens the spool of a stopped engine for fn.
func withSpool(file string, fn func(*store.DB) error) error {
	cfg, err := loadConfig(file)
	if err != nil {
		return err
	}
	lock, err := store.Lock(cfg.DataDir, nil)
	if err != nil {
		return err
	}
	defer lock.Close()
	db, err := store.Open(cfg.DataDir, store.Spool, store.Options{})
	if err != nil {
		return err
	}
	return errors.Join(fn(db), db.Close())
}

// progress reports on stderr, at most once a second.
func (c *call) progress(verb string) func(queue.TransferReport) {
	var last time.Time
	return func(r queue.TransferReport) {
		if time.Since(last) < time.Second {
			return
		}
		last = time.Now()
		fmt.Fprintf(c.stderr, "%s %d messages, %d recipients, %d skipped\n", verb, r.Messages, r.Recipients, r.Skipped)
	}
}

func queueExport(ctx context.Context, c *call) error {
	file := c.flags.String("c", "", "configuration `file`")
	out := c.flags.String("out", "-", "`file` to write, which must not exist; - is standard output")
	remove := c.flags.Bool("remove", false, "take what was exported out of the queue, once the file is safely on disk")
	opt := queue.TransferOptions{Now: time.Now, Progress: c.progress("exported")}
	c.flags.StringVar(&opt.Tenant, "tenant", "", "only mail of this `tenant`")
	c.flags.StringVar(&opt.Domain, "domain", "", "only recipients in this `domain`")
	if err := c.parse(); err != nil {
		return err
	}
	if *remove && *out == "-" {
		return usageError("--remove needs --out FILE: what goes to a pipe may get lost")
	}
	var left queue.TransferReport
	var r queue.TransferReport
	var damaged []string
	err := withSpool(*file, func(db *store.DB) (err error) {
		defer func() { damaged = db.DamagedFiles() }()
		if *out == "-" {
			r, err = queue.Export(ctx, db, c.stdout, opt)
			return err
		}
		if r, err = exportFile(ctx, db, *out, opt); err != nil || !*remove {
			return err
		}
		left, err = leave(ctx, db, *out)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stderr, "%d messages, %d recipients exported; %d could not be read\n", r.Messages, r.Recipients, r.Skipped)
	for _, name := range damaged {
		fmt.Fprintf(c.stderr, "damaged: %s\n", name)
	}
	if r.Incomplete {
		fmt.Fprintln(c.stderr, "there was more, of which not even the names can be read; queue verify tells what it was about")
	}
	if *remove {
		fmt.Fprintf(c.stderr, "%d messages, %d recipients taken out of the queue\n", left.Messages, left.Recipients)
	}
	return nil
}

// exportFile writes an export that is there whole, and durably, or not at all.
func exportFile(ctx context.Context, db *store.DB, name string, opt queue.TransferOptions) (r queue.TransferReport, err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return r, err
	}
	r, err = queue.Export(ctx, db, f, opt)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return r, errors.Join(err, os.Remove(name))
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return r, err
	}
	return r, errors.Join(dir.Sync(), dir.Close())
}

// leave reads the export back, to be sure of it, and then takes what it holds out
// of the queue.
func leave(ctx context.Context, db *store.DB, name string) (r queue.TransferReport, err error) {
	f, err := os.Open(name)
	if err != nil {
		return r, err
	}
	defer f.Close()
	if _, err := queue.Import(ctx, db, f, queue.TransferOptions{DryRun: true, Now: time.Now}); err != nil {
		return r, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return r, err
	}
	m, err := queue.New(queue.DefaultConfig(), queue.Deps{
		DB: db, Recorder: event.NewJournal(db, event.Config{Now: time.Now}), Now: time.Now, IDs: &message.IDSource{},
	})
	if err != nil {
		return r, err
	}
	defer m.Close()
	return m.Leave(ctx, f, "moved to another node with queue export")
}

func queueImport(ctx context.Context, c *call) error {
	file := c.flags.String("c", "", "configuration `file`")
	in := c.flags.String("in", "-", "`file` that queue export wrote; - is standard input")
	yes := c.flags.Bool("yes", false, "do it; without this the file is only checked")
	if err := c.parse(); err != nil {
		return err
	}
	var src io.Reader = c.stdin
	if *in != "-" {
		f, err := os.Open(*in)
		if err != nil {
			return err
		}
		defer f.Close()
		src = f
	}
	var r queue.TransferReport
	err := withSpool(*file, func(db *store.DB) (err error) {
		cursors, err := event.AtEnd(db)
		if err != nil {
			return err
		}
		r, err = queue.Import(ctx, db, src, queue.TransferOptions{DryRun: !*yes, Now: time.Now, Progress: c.progress("imported")})
		if *yes {
			// The history is no news: whoever had read everything has read it.
			err = errors.Join(err, event.MoveToEnd(db, cursors))
		}
		return err
	})
	done := "imported"
	if !*yes {
		done = "would be imported (this was a dry run: --yes does it)"
	}
	fmt.Fprintf(c.stderr, "%d messages, %d recipients %s; %d were here already\n", r.Messages, r.Recipients, done, r.Skipped)
	return err
}
