package bounce

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// cpuPerOp reports the processor time of the loop besides its wall time: on a
// shared machine only that can be compared.
func cpuPerOp(b *testing.B) func() {
	b.Helper()
	start := cpuTime(b)
	return func() {
		b.ReportMetric(float64(cpuTime(b)-start)/float64(b.N), "cpu-ns/op")
	}
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkParse reads the published corpus' mails of typical size, 3 to 5 KB.
func BenchmarkParse(b *testing.B) {
	c := shipped(b)
	files, err := filepath.Glob("testdata/corpus/*.eml")
	if err != nil {
		b.Fatal(err)
	}
	var mails [][]byte
	size := 0
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			b.Fatal(err)
		}
		if len(raw) >= 2500 && len(raw) <= 5500 {
			mails = append(mails, raw)
			size += len(raw)
		}
	}
	b.SetBytes(int64(size / len(mails)))
	b.ReportAllocs()
	done := cpuPerOp(b)
	for i := 0; b.Loop(); i++ {
		Parse(mails[i%len(mails)], Options{Classifier: c})
	}
	done()
}
