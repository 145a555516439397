package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// machine is what the figures were measured on.
type machine struct {
	Date       time.Time
	CPU        string
	Cores      int
	Memory     string
	Kernel     string
	FileSystem string
	FsyncP50   time.Duration // of 10 KiB appended to a file
	FsyncP99   time.Duration
	Tradewind  string
	Postfix    string
	OpenSSL    string
	RSA        time.Duration // CPU of one signature by openssl speed rsa2048
	LoadBefore string        // load average when it began, and when it ended
	LoadAfter  string
}

func examine(ctx context.Context, o *options) machine {
	m := machine{
		Date: time.Now().UTC(), Cores: runtime.NumCPU(), CPU: "unknown", Memory: "unknown",
		Kernel: say(ctx, "uname", "-sr"), Tradewind: say(ctx, o.binary, "version"),
		OpenSSL: say(ctx, "openssl", "version"), FileSystem: fileSystem(o.work),
	}
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if match := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(raw); match != nil {
			m.CPU = string(match[1])
		}
	}
	if n, err := field("/proc/meminfo", "MemTotal:"); err == nil {
		m.Memory = fmt.Sprintf("%.0f GiB", float64(n)/(1<<20))
	}
	m.FsyncP50, m.FsyncP99 = fsyncs(o)
	m.RSA = opensslSpeed(ctx, o)
	m.LoadBefore = load()
	return m
}

// finish notes what else was going on by the end.
func (m *machine) finish() { m.LoadAfter = load() }

func load() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(raw))[:3], " ")
}

// say is the first line that a command prints, "unknown" when it cannot be run.
func say(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return "unknown"
	}
	line, _, _ := bytes.Cut(out, []byte{'\n'})
	return string(line)
}

// fileSystem is the type of what dir lies on.
func fileSystem(dir string) string {
	raw, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return "unknown"
	}
	best, kind := -1, "unknown"
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 3 {
			continue
		}
		if rel, err := filepath.Rel(f[1], dir); err == nil && !strings.HasPrefix(rel, "..") && len(f[1]) > best {
			best, kind = len(f[1]), f[2]
		}
	}
	return kind
}

// fsyncs measures the disk under o.work as the log of a store uses it.
func fsyncs(o *options) (p50, p99 time.Duration) {
	f, err := os.Create(filepath.Join(o.work, "fsync"))
	if err != nil {
		return 0, 0
	}
	defer os.Remove(f.Name())
	defer f.Close()
	n := 500
	if o.short {
		n = 20
	}
	block := bytes.Repeat([]byte("0123456789abcdef"), 640)
	var list []time.Duration
	for range n {
		if _, err := f.Write(block); err != nil {
			return 0, 0
		}
		start := time.Now()
		if f.Sync() != nil {
			return 0, 0
		}
		list = append(list, time.Since(start))
	}
	slices.Sort(list)
	return list[n/2], list[n*99/100]
}

// opensslSpeed is the CPU time of one RSA-2048 signature.
func opensslSpeed(ctx context.Context, o *options) time.Duration {
	seconds := "3"
	if o.short {
		seconds = "1"
	}
	out, err := exec.CommandContext(ctx, "openssl", "speed", "-seconds", seconds, "rsa2048").Output()
	if err != nil {
		return 0
	}
	match := regexp.MustCompile(`rsa 2048 bits\s+([0-9.]+)s`).FindSubmatch(out)
	if match == nil {
		return 0
	}
	v, err := strconv.ParseFloat(string(match[1]), 64)
	if err != nil {
		return 0
	}
	return time.Duration(v * float64(time.Second))
}
