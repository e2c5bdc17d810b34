package critic

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
)

// Money is an amount in billionths of the currency's unit, so that sums are exact: a price per million tokens with three
// decimals is a whole number of them per token.
type Money int64

const moneyUnit = 1_000_000_000

// ParseMoney reads an amount such as "12.50".
func ParseMoney(text string) (Money, error) {
	whole, part, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(text), "$"), ".")
	if len(part) > 9 || whole == "" && part == "" {
		return 0, fmt.Errorf("%q is no amount of money", text)
	}
	units, err := strconv.ParseUint("0"+whole, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is no amount of money", text)
	}
	rest, err := strconv.ParseUint(part+strings.Repeat("0", 9-len(part)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no amount of money", text)
	}
	return Money(units*moneyUnit + rest), nil
}

// String has four decimals, as single requests cost that little.
func (m Money) String() string { return fmt.Sprintf("$%.4f", float64(m)/moneyUnit) }

// MarshalJSON writes the amount as an exact decimal number.
func (m Money) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "%d.%09d", m/moneyUnit, m%moneyUnit), nil
}

// UnmarshalJSON reads what MarshalJSON writes.
func (m *Money) UnmarshalJSON(text []byte) error {
	var n json.Number
	if err := json.Unmarshal(text, &n); err != nil {
		return err
	}
	v, err := ParseMoney(n.String())
	if err == nil {
		*m = v
	}
	return err
}

// Price is what a million tokens cost.
type Price struct {
	In  Money `json:"in"`
	Out Money `json:"out"`
}

// Of is the price of so many tokens, rounded up to a billionth.
func (p Price) Of(in, out int) Money {
	const million = 1_000_000
	total := float64(p.In)*float64(in) + float64(p.Out)*float64(out)
	if total < math.MaxInt64/2 { // exact
		return (p.In*Money(in) + p.Out*Money(out) + million - 1) / million
	}
	return Money(min(total/million, 1<<60)) // of which some can be added up
}

// ErrBudget says that another request could exceed the budget.
var ErrBudget = errors.New("the budget is reached")

// ledger keeps what was spent, what may have been, and what is in flight, within a limit.
type ledger struct {
	mu       sync.Mutex
	limit    Money // 0 = none
	spent    Money
	possible Money // of requests whose answers were lost
	inFlight Money
	changed  chan struct{} // closed and replaced whenever something is settled
}

func newLedger(limit, spent, possible Money) *ledger {
	return &ledger{limit: limit, spent: spent, possible: possible, changed: make(chan struct{})}
}

// tryReserve sets money aside for a request that costs worst at most. wait is nil if it has; otherwise it is closed when
// there is reason to try again. ErrBudget: nothing that is in flight can make room any more.
func (l *ledger) tryReserve(worst Money) (wait <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.limit == 0 || l.spent+l.possible+l.inFlight+worst <= l.limit {
		l.inFlight += worst
		return nil, nil
	}
	if l.inFlight == 0 {
		return nil, ErrBudget
	}
	return l.changed, nil
}

// settle ends a reservation: spent for sure, and possibly.
func (l *ledger) settle(worst, spent, possible Money) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inFlight -= worst
	l.spent += spent
	l.possible += possible
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *ledger) totals() (spent, possible Money) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.spent, l.possible
}
