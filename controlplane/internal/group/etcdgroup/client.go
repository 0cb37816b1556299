package etcdgroup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

// Limits of one attempt at one member of etcd: another member is asked next. A
// write has longer, because what became of it is not known when it is given up.
const (
	readLimit  = 1500 * time.Millisecond
	writeLimit = 4 * time.Second
	pauseMin   = 10 * time.Millisecond // between attempts
	pauseMax   = 300 * time.Millisecond
)

func (s *Store) clientConfig(ctx context.Context) clientv3.Config {
	return clientv3.Config{
		Context: ctx, Endpoints: s.cfg.Endpoints, TLS: s.cfg.TLS, Username: s.cfg.Username, Password: s.cfg.Password,
		DialTimeout: writeLimit, DialKeepAliveTime: 6 * time.Second, DialKeepAliveTimeout: 3 * time.Second, // a member refuses pings that come sooner than 5 s
		BackoffWaitBetween: 25 * time.Millisecond, MaxUnaryRetries: 2,
		Logger: zap.NewNop(), // what goes wrong is an error here, and told once
	}
}

// connect makes the client; with a user name that takes an answer from etcd.
func (s *Store) connect(ctx context.Context) error {
	for told := false; ; {
		c, err := clientv3.New(s.clientConfig(ctx))
		if err == nil {
			s.client = c
			return nil
		}
		if !told {
			s.cfg.Logger.Warn("etcd does not let this node in", "err", s.plain(err))
			told = true
		}
		if !pause(ctx, time.Second) {
			return ctx.Err()
		}
	}
}

// limited is one attempt's context: a member without a leader refuses at once instead of waiting.
func limited(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(clientv3.WithRequireLeader(ctx), limit)
}

// plain is an error of etcd's in this engine's words: which limit or right is missing, and where.
func (s *Store) plain(err error) error {
	advice := ""
	switch {
	case errors.Is(err, rpctypes.ErrTooManyOps):
		advice = fmt.Sprintf(": start etcd with --max-txn-ops %d or more", NeedTxnOps)
	case errors.Is(err, rpctypes.ErrRequestTooLarge):
		advice = fmt.Sprintf(": start etcd with --max-request-bytes %d or more", NeedRequestBytes)
	case errors.Is(err, rpctypes.ErrNoSpace):
		advice = ": compact and defragment it or raise --quota-backend-bytes, then disarm the alarm"
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		advice = ": grant the user read and write below the prefix"
	case errors.Is(err, rpctypes.ErrAuthFailed), errors.Is(err, rpctypes.ErrUserEmpty), errors.Is(err, rpctypes.ErrInvalidAuthToken):
		advice = ": set user name and password as etcd knows them"
	case errors.Is(err, context.DeadlineExceeded):
		advice = ": no member answers, or none has a leader"
	}
	return fmt.Errorf("etcd: %w%s", err, advice)
}

func (s *Store) noLeader(verb string, err error) error {
	return fault.New(fault.Unavailable, group.ReasonNoLeader, "%s group %s: %w", verb, s.cfg.Name, err)
}

func (s *Store) unknownOutcome(err error) error {
	return fault.New(fault.Unavailable, group.ReasonOutcomeUnknown,
		"change group %s: the outcome is unknown, retry with the same request id: %w", s.cfg.Name, err)
}

// pause waits, and says whether ctx is still on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// again calls until it succeeds or ctx ends, ever more slowly.
func (s *Store) again(ctx context.Context, limit time.Duration, call func(ctx context.Context) error) error {
	for wait := pauseMin; ; wait = min(2*wait, pauseMax) {
		actx, cancel := limited(ctx, limit)
		err := call(actx)
		cancel()
		if err == nil {
			return nil
		}
		s.trouble.Store(&err)
		if !pause(ctx, wait) {
			return s.plain(err)
		}
	}
}

// lastTrouble is why etcd did not answer lately, for the caller whose time is over.
func (s *Store) lastTrouble(err error) error {
	if p := s.trouble.Load(); p != nil {
		return fmt.Errorf("%w; lately: %w", err, s.plain(*p))
	}
	return err
}
