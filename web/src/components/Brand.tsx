export function Brand() {
  return (
    <span className="brand">
      <svg className="brand-mark" viewBox="0 0 32 32" aria-hidden="true">
        <rect width="32" height="32" rx="8" />
        <path d="M5 16h6M21 16h6" />
        <circle cx="16" cy="16" r="4.25" />
      </svg>
      allim
      {/* Drawn, because many machines have no Korean font. */}
      <svg className="brand-hangul" viewBox="0 0 43 24" role="img" aria-label="알림" lang="ko">
        <path d="M11 6a4 4 0 1 1-8 0a4 4 0 1 1 8 0M16 1.5V11M16 6h3.5M4 13.5h12v4H4v4h13" />
        <path d="M25 2.5h8.5v4H25v4h9.5M39.5 1.5V12M27 14.5h12.5v7H27z" />
      </svg>
    </span>
  );
}
