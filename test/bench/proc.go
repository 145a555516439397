package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// usage is what a tree of processes has used since it began. Children that
// have ended are in it: the kernel adds them to whoever waited for them.
type usage struct {
	cpu     time.Duration
	written int64 // octets given to storage
}

// tick is the unit of CPU time in /proc, the same on every Linux that Go runs on.
const tick = 10 * time.Millisecond

// tree returns root and everything below it.
func tree(root int) ([]int, error) {
	names, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, name := range names {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		f, err := statOf(pid)
		if err != nil {
			continue // gone since
		}
		if parent, err := strconv.Atoi(f[1]); err == nil {
			children[parent] = append(children[parent], pid)
		}
	}
	list := []int{root}
	for i := 0; i < len(list); i++ {
		list = append(list, children[list[i]]...)
	}
	return list, nil
}

// statOf returns the fields of /proc/PID/stat from the state on. The name in
// front of it may hold anything.
func statOf(pid int) ([]string, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(f) < 15 {
		return nil, errors.New("/proc/PID/stat is not what it was")
	}
	return f, nil
}

// usageOf adds up the tree below root. A process that ends meanwhile is counted
// with its parent the next time.
func usageOf(root int) (u usage, err error) {
	list, err := tree(root)
	if err != nil {
		return u, err
	}
	for _, pid := range list {
		f, err := statOf(pid)
		if err != nil {
			if pid == root {
				return u, err
			}
			continue
		}
		for _, s := range f[11:15] { // utime, stime, cutime, cstime
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				return u, fmt.Errorf("/proc/%d/stat: %w", pid, err)
			}
			u.cpu += time.Duration(n) * tick
		}
		n, err := field(fmt.Sprintf("/proc/%d/io", pid), "write_bytes:")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return u, err
		}
		u.written += n
	}
	return u, nil
}

// field reads a number from a file of lines "name: number".
func field(file, name string) (int64, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s: no %s", file, name)
}

// peakOf is the most memory a single process has had, in octets.
func peakOf(pid int) int64 {
	n, err := field(fmt.Sprintf("/proc/%d/status", pid), "VmHWM:")
	if err != nil {
		return 0
	}
	return n << 10
}

// shareOf is the memory of the tree below root now, shared pages counted once.
func shareOf(root int) (sum int64) {
	list, err := tree(root)
	if err != nil {
		return 0
	}
	for _, pid := range list {
		if n, err := field(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:"); err == nil {
			sum += n << 10
		}
	}
	return sum
}

// watchMemory follows the memory of a relay until the function it returns is
// called, which returns the peak.
func watchMemory(r relay) func() int64 {
	if !r.slow() {
		return func() int64 { return peakOf(r.pid()) }
	}
	var peak int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(time.Second) // asking costs the machine milliseconds
		defer t.Stop()
		for {
			peak = max(peak, shareOf(r.pid()))
			select {
			case <-t.C:
			case <-stop:
				return
			}
		}
	})
	return func() int64 {
		close(stop)
		wg.Wait()
		return peak
	}
}
