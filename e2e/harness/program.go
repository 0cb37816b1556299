package harness

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
)

// Main runs f as a test runs, for a program that is none: Fatal ends f, Cleanup functions run at the end. It
// returns whether f went through.
func Main(output io.Writer, f func(T)) bool {
	p := &program{output: output}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer p.cleanup()
		f(p)
	}()
	<-done
	return !p.Failed()
}

type program struct {
	output   io.Writer
	mu       sync.Mutex // covers the rest
	failed   bool
	cleanups []func()
}

func (p *program) cleanup() {
	for {
		p.mu.Lock()
		n := len(p.cleanups)
		if n == 0 {
			p.mu.Unlock()
			return
		}
		f := p.cleanups[n-1]
		p.cleanups = p.cleanups[:n-1]
		p.mu.Unlock()
		f()
	}
}

func (p *program) fail() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = true
}

func (p *program) Helper() {}
func (p *program) Failed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}
func (p *program) Logf(format string, args ...any) { fmt.Fprintf(p.output, format+"\n", args...) }
func (p *program) Errorf(format string, args ...any) {
	p.fail()
	p.Logf(format, args...)
}
func (p *program) Fatalf(format string, args ...any) {
	p.Errorf(format, args...)
	runtime.Goexit() // deferred functions and the cleanups run
}
func (p *program) Fatal(args ...any) { p.Fatalf("%s", fmt.Sprint(args...)) }
func (p *program) Cleanup(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cleanups = append(p.cleanups, f)
}
func (p *program) TempDir() string {
	dir, err := os.MkdirTemp("", "bailiwick-bench-")
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
