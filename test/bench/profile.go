package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// stage is a part of the work, told apart by the functions on its stacks.
type stage struct{ name, focus, ignore string }

// stages do not overlap.
func stages() []stage {
	return []stage{
		{"receive: the dialogue, the body's framing", `inbound\.\(\*Conn\)\.serve`, `DataBytes`},
		{"door: header, checks, Received", `inject\.\(\*Injector\)\.Prepare`, ``},
		{"accept: what goes into the batch", `queue\.\(\*Manager\)\.Accept$`, ``},
		{"commits into the memtable, reads of the store", `store\.\(\*DB\)\.work$`, ``},
		{"log of the store: write and sync", `record\.\(\*LogWriter\)\.flushLoop`, ``},
		{"flush and compaction", `pebble/v2\.\(\*DB\)\.(flush|compact)`, ``},
		{"schedule, permit, suppression, load", `mta\.\(\*site\)\.run$`, `outbound\.\(\*Conn\)\.Send|mta\.\(\*MTA\)\.settle`},
		{"send", `outbound\.\(\*Conn\)\.Send$`, ``},
		{"settle: verdict, event, what goes into the batch", `mta\.\(\*MTA\)\.settle$`, ``},
		{"events to the sinks", `event\.\(\*feed\)\.run$`, ``},
		{"garbage collection, in the background", `runtime\.(gcBgMarkWorker|bgsweep|bgscavenge)$`, ``},
		{"scheduler of goroutines", `runtime\.(mcall|mstart)$`, ``},
	}
}

// profile says where the time goes: one run of the middle of the matrix under
// the profiler of the binary. It needs the go command, to read the profile.
func (r *report) profile(ctx context.Context, t *tradewind) error {
	c := matrix()[0]
	f, err := newFar(&c)
	if err != nil {
		return err
	}
	defer f.close()
	if err := t.start(ctx, &c, f.addr); err != nil {
		return err
	}
	defer t.stop()
	messages := c.count(t, r.scale)
	if _, err := offer(ctx, t, f, &c, "warm", messages/warmup, 0); err != nil {
		return err
	}
	r.Profiles = map[string]string{}
	runs := 0
	for _, p := range profiles() {
		file := filepath.Join(r.work, p.name+".pb.gz")
		began, ended := time.Now(), make(chan error, 1)
		seconds := p.seconds
		if r.short {
			seconds = 1
		}
		go func() {
			ended <- fetch(ctx, fmt.Sprintf("http://%s/debug/pprof/%s?seconds=%d", t.adminAddr, p.path, seconds), file)
		}()
		for time.Since(began) < time.Duration(seconds)*time.Second {
			if _, err := offer(ctx, t, f, &c, fmt.Sprintf("user%d-", runs), messages, 0); err != nil {
				return errors.Join(err, <-ended)
			}
			runs++
		}
		if err := <-ended; err != nil {
			return err
		}
		top, err := longest(ctx, t.binary, file, p.sample)
		if err != nil {
			r.note("The profile was not read: %v.", err)
			return nil
		}
		r.Profiles[p.name] = top
	}
	file := filepath.Join(r.work, "cpu.pb.gz")
	total, err := samples(ctx, t.binary, file, stage{focus: "."})
	if err != nil {
		r.note("The profile was not read: %v.", err)
		return nil
	}
	rest, list := total, stages()
	if r.short {
		list = list[:1] // reading takes longer than the run
	}
	for _, s := range list {
		d, err := samples(ctx, t.binary, file, s)
		if err != nil {
			return err
		}
		rest -= d
		r.Stages = append(r.Stages, share{s.name, 100 * d.Seconds() / total.Seconds()})
	}
	r.Stages = append(r.Stages, share{"the rest", 100 * rest.Seconds() / total.Seconds()})
	system, err := samples(ctx, t.binary, file, stage{focus: `syscall\.Syscall|linux\.Syscall`})
	if err != nil {
		return err
	}
	r.Stages = append(r.Stages, share{"of all of it, in system calls", 100 * system.Seconds() / total.Seconds()})
	return nil
}

// profiled is one kind of profile: its path at the admin listener, for how long it
// is taken, and the sample that counts, if there are several.
type profiled struct {
	name, path string
	seconds    int
	sample     string
}

func profiles() []profiled {
	return []profiled{
		{"cpu", "profile", 10, ""}, {"allocs", "allocs", 5, "alloc_space"},
		{"block", "block", 5, "delay"}, {"mutex", "mutex", 5, "delay"},
	}
}

// longest is what pprof prints of the functions that took most.
func longest(ctx context.Context, binary, file, sample string) (string, error) {
	args := []string{"tool", "pprof", "-top", "-cum", "-nodecount=80"}
	if sample != "" {
		args = append(args, "-sample_index="+sample)
	}
	out, err := exec.CommandContext(ctx, "go", append(args, binary, file)...).Output()
	if err != nil {
		return "", fmt.Errorf("go tool pprof: %w", err)
	}
	// What comes before is the name of the binary and the time.
	_, top, _ := strings.Cut(string(out), "Showing nodes")
	return "Showing nodes" + top, nil
}

// share is a stage's part of the CPU time, in percent.
type share struct {
	Name    string
	Percent float64
}

func fetch(ctx context.Context, url, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return os.WriteFile(file, raw, 0o644)
}

var accounting = regexp.MustCompile(`accounting for ([0-9.]+)(ms|s|mins), .* of`)

// samples is the CPU time of a stage in a profile.
func samples(ctx context.Context, binary, file string, s stage) (time.Duration, error) {
	args := []string{"tool", "pprof", "-top", "-nodecount=1000000", "-nodefraction=0", "-edgefraction=0", "-focus=" + s.focus}
	if s.ignore != "" {
		args = append(args, "-ignore="+s.ignore)
	}
	out, err := exec.CommandContext(ctx, "go", append(args, binary, file)...).Output()
	if err != nil {
		return 0, fmt.Errorf("go tool pprof: %w", err)
	}
	return accounted(string(out))
}

// accounted reads the head of what pprof prints. Without a line of its own
// there was no sample.
func accounted(out string) (time.Duration, error) {
	match := accounting.FindStringSubmatch(out)
	if match == nil {
		return 0, nil
	}
	v, err := strconv.ParseFloat(match[1], 64)
	if err != nil {
		return 0, fmt.Errorf("go tool pprof: %w", err)
	}
	unit := map[string]time.Duration{"ms": time.Millisecond, "s": time.Second, "mins": time.Minute}[match[2]]
	return time.Duration(v * float64(unit)), nil
}

func (r *report) stagesTable() string {
	if len(r.Stages) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\nWhere the time goes: CPU of Tradewind by stage, 10 KiB, unsigned, under its own profiler.\n\n| stage | share |\n|---|---|\n")
	for _, s := range r.Stages {
		fmt.Fprintf(&b, "| %s | %.0f %% |\n", s.Name, s.Percent)
	}
	return b.String()
}
