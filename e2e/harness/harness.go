// Package harness starts a sandbox of real processes and drives it through public interfaces only: the CLI,
// the admin API, HTTP through the edges, the sandbox's control_url and directory. It owns the processes it
// starts and ends them with the test or program that started them; nothing of it survives. One Sandbox may be
// used by several goroutines at once, as long as only the test's own calls what may end the test.
package harness

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// T is what the harness needs of a test. *testing.T is one; Main makes one for programs.
type T interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Fatal(args ...any)
	Failed() bool
	Cleanup(func())
	TempDir() string
}

// Sandbox is a running installation, as its sandbox.json describes it.
type Sandbox struct {
	Admin []struct{ Name, Region, Zone, URL string }
	Edges []struct {
		Name, Region, Zone, HTTPS, HTTP, H3, DNS, Admin, Dir string
		PID                                                  int
	}
	Upstreams []struct {
		Name, Region, API, URL string
		PID                    int
	}
	Controls []struct {
		Name, Region, Zone, Dir string
		PID                     int
	}
	Stores []struct { // members of etcds; none with raft
		Name, Region, Cluster, URL, Dir string
		PID                             int
	}
	APIs       []struct{ Name, Zone, Host, Policy string }
	Keys       []struct{ Customer, Zone, Plan, Key string }
	AdminToken string   `json:"admin_token_file"`
	CAFile     string   `json:"ca_file"`
	ControlURL string   `json:"control_url"`
	ACMEFlags  []string `json:"acme"`           // of edges, where certificates come from an ACME authority
	ACMEURL    string   `json:"acme_authority"` // that authority; "" without

	Dir   string
	Bin   string
	Base  int
	PID   int // of the sandbox itself
	roots *x509.CertPool
	t     T
	pool  *pool
}

// pool shares connections between all views of one sandbox.
type pool struct {
	mu      sync.Mutex // covers the rest
	clients map[string]*http.Client
	admin   *http.Client // an operator's; nil until it is needed
}

// With is the same sandbox for a subtest, which then is what fails.
func (s *Sandbox) With(t T) *Sandbox {
	view := *s
	view.t = t
	return &view
}

// Options say how to start a sandbox. The zero value is the default of each.
type Options struct {
	Bin  string   // where the programs lie; default: bin of the repository
	Env  []string // added to the environment of every process
	Args []string // flags of the sandbox
	// MayTraffic leaves the sample traffic on.
	MayTraffic bool
}

// Root is the repository's root, found from the test's working directory.
func Root(t T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the working directory")
		}
	}
}

// Store is the engine of sandboxes that do not name one: raft if empty. Set it before any starts.
var Store string

// Start runs a sandbox without sample traffic on its own directory and ports, and waits until it is ready.
func Start(t T, args ...string) *Sandbox {
	t.Helper()
	return StartWith(t, Options{Args: args})
}

// StartWith is Start with options.
func StartWith(t T, opts Options) *Sandbox {
	t.Helper()
	root := Root(t)
	if opts.Bin == "" {
		opts.Bin = filepath.Join(root, "bin")
	}
	dir := filepath.Join(t.TempDir(), "sandbox")
	base := freeBase(t)
	args := []string{"-dir", dir, "-bin", opts.Bin, "-base-port", fmt.Sprint(base), "-quiet"}
	if !opts.MayTraffic {
		args = append(args, "-no-traffic")
	}
	if Store != "" {
		args = append(args, "-store", Store)
	}
	cmd := exec.Command(filepath.Join(root, "bin", "sandbox"), append(args, opts.Args...)...)
	cmd.Env = append(os.Environ(), opts.Env...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatalf("start the sandbox: %v; run make build first", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(45 * time.Second):
			t.Errorf("sandbox has not ended 45 s after SIGTERM")
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("sandbox said: %s", output.String())
			logTails(t, filepath.Join(dir, "logs"))
		}
	})
	file := filepath.Join(dir, "sandbox.json")
	deadline := time.Now().Add(3 * time.Minute)
	for {
		if data, err := os.ReadFile(file); err == nil {
			s := &Sandbox{Dir: dir, Bin: opts.Bin, Base: base, PID: cmd.Process.Pid, t: t, pool: &pool{clients: map[string]*http.Client{}}}
			if err := json.Unmarshal(data, s); err != nil {
				t.Fatalf("read sandbox.json: %v", err)
			}
			pem, err := os.ReadFile(s.CAFile)
			if err != nil {
				t.Fatal(err)
			}
			s.roots = x509.NewCertPool()
			if !s.roots.AppendCertsFromPEM(pem) {
				t.Fatalf("%s holds no certificate", s.CAFile)
			}
			return s
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("sandbox ended before it was ready: %v: %s", err, output.String())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("sandbox is not ready after 3 minutes: %s", output.String())
		}
	}
}

func logTails(t T, dir string) {
	files, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil || len(data) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		t.Logf("--- %s (last lines)\n%s", filepath.Base(f), strings.Join(lines[max(0, len(lines)-12):], "\n"))
	}
}

var nextBase = struct {
	sync.Mutex
	n int
}{n: 10000 + os.Getpid()%20*1000}

// freeBase finds a thousand ports of which the first ones are free now. They lie below 32768, where Linux
// begins to hand out ports to outgoing connections: one of those would take a listener's place.
func freeBase(t T) int {
	nextBase.Lock()
	defer nextBase.Unlock()
	for range 40 {
		base := nextBase.n
		nextBase.n += 1000
		if nextBase.n > 31000 {
			nextBase.n = 10000
		}
		free := true
		for _, offset := range []int{0, 1, 80, 101, 301, 443, 501, 901} {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+offset))
			if err != nil {
				free = false
				break
			}
			l.Close()
		}
		if !free {
			continue
		}
		// Other packages' tests look for ports at the same time: whoever holds the last of the thousand has all.
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+999)); err == nil {
			t.Cleanup(func() { l.Close() })
			return base
		}
	}
	t.Fatal("no free range of ports")
	return 0
}
